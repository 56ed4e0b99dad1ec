"""Ridge regression on streamed rows: what recovery and the data criteria fit weights with.

For ``g`` problems side by side, rows ``u: float[r, g, d]`` and residuals ``e: float[r, g, o]``, find the change
``dW: float[g, o, d]`` (and intercept) that makes ``u dW' + db`` nearest to ``e``. Where there are fewer rows than
unknowns, the same solution comes from the kernel of the rows, so no matrix larger than the data is made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

Array = NDArray[Any]

#: Rows that are multiplied at a time.
_BLOCK = 8192
#: Steps of conjugate gradients at most, and the share of the first residual at which they end.
_ITERATIONS, _EXACT = 200, 1e-5


def one_thread() -> Any:
    """A context in which numpy and scipy compute on one thread.

    Most matrices here are small, and ONNX Runtime's threads wait actively between runs: two pools of threads on
    the same cores were measured to be several times slower than one.
    """
    from threadpoolctl import threadpool_limits

    return threadpool_limits(limits=1, user_api="blas")


class Rows:
    """Rows of one or several linear problems, summed up as they come or held where they are few.

    Parameters
    ----------
    d
        Unknowns a row.
    expected
        Rows that will come; with fewer than ``d`` they are held.
    """

    def __init__(self, d: int, expected: int) -> None:
        self.dual = expected < d
        self.n = 0
        self._held: list[tuple[Array, Array]] = []
        self._sums: list[Array] | None = None

    def add(self, u: Array, e: Array) -> None:
        """More rows: ``u: float[r, g, d]``, ``e: float[r, g, o]``."""
        self.n += len(u)
        if self.dual:
            self._held.append((u.astype(np.float32), e.astype(np.float32)))
            return
        sums = self._sums
        if sums is None:
            g, d, o = u.shape[1], u.shape[2], e.shape[2]
            sums = [np.zeros(s) for s in ((g, d), (g, o), (g, d, d), (g, o, d), (g, o))]
            self._sums = sums
        for start in range(0, len(u), _BLOCK):
            a = np.ascontiguousarray(u[start : start + _BLOCK].transpose(1, 0, 2), np.float32)
            b = np.ascontiguousarray(e[start : start + _BLOCK].transpose(1, 0, 2), np.float32)
            parts = (a.sum(1, dtype=np.float64), b.sum(1, dtype=np.float64), a.transpose(0, 2, 1) @ a,
                     b.transpose(0, 2, 1) @ a, np.square(b).sum(1, dtype=np.float64))  # fmt: skip
            for total, part in zip(sums, parts, strict=True):
                total += part

    @staticmethod
    def joined(parts: list[Rows]) -> Rows:
        """All rows of one or several problems of the same sizes: one weight that serves several nodes."""
        if len(parts) == 1:
            return parts[0]
        out = Rows(0, 0)
        out.dual = all(part.dual for part in parts)
        for part in parts:
            out.n += part.n
            held, part_sums = part._held, part._sums
            if part_sums is None and not out.dual:
                summed = Rows(0, 0)
                summed.dual = False
                for u, e in held:
                    summed.add(u, e)
                part_sums = summed._sums
            out._held.extend(held)
            if out._sums is None or part_sums is None:
                out._sums = out._sums or part_sums
            else:
                out._sums = [a + b for a, b in zip(out._sums, part_sums, strict=True)]
        return out

    def means(self) -> tuple[Array, Array]:
        """Means of inputs and residuals, float64[g, d] and float64[g, o]."""
        if self.dual:
            u, e = (np.concatenate(part).mean(0, dtype=np.float64) for part in zip(*self._held, strict=True))
            return u, e
        assert self._sums is not None
        return self._sums[0] / self.n, self._sums[1] / self.n

    def centred(self, intercept: bool) -> tuple[Array, Array, Array, Array]:
        """Second moments about the means (about 0 without an intercept).

        Returns
        -------
        uu, eu, mu, me
            float64[g, d, d], float64[g, o, d], float64[g, d] and float64[g, o], means over the rows.
        """
        assert self._sums is not None
        su, se, uu, eu, _ = (s / self.n for s in self._sums)
        if not intercept:
            return uu, eu, np.zeros_like(su), np.zeros_like(se)
        return uu - su[:, :, None] * su[:, None, :], eu - se[:, :, None] * su[:, None, :], su, se

    def projected(self, weight: Array) -> tuple[Array, Array]:
        """Mean and variance of ``u weight'`` over the rows, float64[g, o] both; ``weight: float[g, o, d]``."""
        if self.dual:
            y = np.concatenate([np.einsum("rgd,god->rgo", u, weight) for u, _ in self._held])
            return y.mean(0), y.var(0)
        uu, _, mu, _ = self.centred(True)
        variance = ((weight @ uu) * weight).sum(2)
        return (weight * mu[:, None, :]).sum(2), np.maximum(variance, 0)

    def solve(self, ridge: float, intercept: bool = True) -> tuple[Array, Array]:
        """The change of weights and of the intercept.

        Parameters
        ----------
        ridge
            Pull towards no change, as a share of the mean squared entry of the (centred) rows.

        Returns
        -------
        dw, db
            float64[g, o, d] and float64[g, o].
        """
        if self.dual:
            return self._solve_dual(ridge, intercept)
        uu, eu, mu, me = self.centred(intercept)
        g, d = mu.shape
        dw = np.empty_like(eu)
        for i in range(g):
            scale = float(np.trace(uu[i])) / d
            matrix = uu[i] + (ridge * scale + 1e-12) * np.eye(d)
            dw[i] = solve_positive(matrix, eu[i].T).T
        return dw, me - (dw * mu[:, None, :]).sum(2)

    def curvature(self, ridge: float) -> Array:
        """How little each weight can be spared: the inverse of the centred second moments, float64[g, d, d].

        With fewer rows than unknowns, the moments' diagonal alone, float64[g, d].
        """
        if self.dual:
            u = np.concatenate([u for u, _ in self._held]).astype(np.float64)
            return np.asarray(u.var(0))
        uu, _, mu, _ = self.centred(True)
        d = mu.shape[1]
        return np.stack([solve_positive(m + (ridge * float(np.trace(m)) / d + 1e-12) * np.eye(d), np.eye(d)) for m in uu])

    def solve_within(self, weight: Array, mask: Array, ridge: float, intercept: bool = True) -> tuple[Array, Array]:
        """As :meth:`solve`, where the changed weight is zero outside a mask of its own for each output.

        All outputs are solved at once by conjugate gradients with a diagonal preconditioner, so no system is set up for any.

        Parameters
        ----------
        weight, mask
            float64[g, o, d] and bool[g, o, d]: the weight that the residuals are those of, and where it may stay.

        Returns
        -------
        dw, db
            float64[g, o, d] and float64[g, o].
        """
        gone = np.where(mask, 0.0, -weight)
        if self.dual:
            u, e = (np.concatenate(parts).astype(np.float64) for parts in zip(*self._held, strict=True))
            mu = u.mean(0) if intercept else np.zeros(u.shape[1:])
            me = e.mean(0) if intercept else np.zeros(e.shape[1:])
            rows, left = (u - mu).transpose(1, 0, 2), (e - me).transpose(1, 2, 0)
            diagonal = np.square(rows).mean(1)

            def times(x: Array) -> Array:
                return np.asarray((x @ rows.transpose(0, 2, 1)) @ rows / self.n)

            eu = left @ rows / self.n
        else:
            uu, eu, mu, me = self.centred(intercept)
            diagonal = np.diagonal(uu, axis1=1, axis2=2)

            def times(x: Array) -> Array:
                return np.asarray(x @ uu)

        shift = ridge * diagonal.mean(1)[:, None, None] + 1e-12
        step = _conjugate(lambda x: np.where(mask, times(x) + shift * x, 0.0), np.where(mask, eu - times(gone), 0.0),
                          diagonal[:, None, :] + shift)  # fmt: skip
        dw = step + gone
        return dw, me - (dw * mu[:, None, :]).sum(2)

    def _solve_dual(self, ridge: float, intercept: bool) -> tuple[Array, Array]:
        u, e = (np.concatenate(parts).astype(np.float64) for parts in zip(*self._held, strict=True))
        mu = u.mean(0) if intercept else np.zeros(u.shape[1:])
        me = e.mean(0) if intercept else np.zeros(e.shape[1:])
        u, e = u - mu, e - me
        r, g, d = u.shape
        dw = np.empty((g, e.shape[2], d))
        for i in range(g):
            kernel = u[:, i] @ u[:, i].T
            shift = ridge * float(np.trace(kernel)) / d + 1e-12
            dw[i] = (u[:, i].T @ solve_positive(kernel + shift * np.eye(r), e[:, i])).T
        return dw, me - (dw * mu[:, None, :]).sum(2)


def solve_positive(matrix: Array, right: Array) -> Array:
    """Solve a symmetric, (nearly) positive definite system, float64[d, d] and float64[d, m]."""
    try:
        return np.asarray(scipy.linalg.cho_solve(scipy.linalg.cho_factor(matrix, check_finite=False), right))
    except np.linalg.LinAlgError:
        # Rounding made it indefinite: directions without variance get no change.
        return np.asarray(scipy.linalg.pinvh(matrix) @ right)


def _conjugate(times: Callable[[Array], Array], right: Array, diagonal: Array) -> Array:
    """Solve symmetric positive systems side by side, one for each row of ``right: float64[..., d]``."""
    x = np.zeros_like(right)
    r = right.copy()
    z = r / diagonal
    p, product = z, (r * z).sum(-1, keepdims=True)
    goal = np.maximum(product * _EXACT**2, 1e-300)
    for _ in range(_ITERATIONS):
        if (product <= goal).all():
            break
        forward = times(p)
        alpha = product / np.maximum((p * forward).sum(-1, keepdims=True), 1e-300)
        alpha[product <= goal] = 0.0
        x += alpha * p
        r -= alpha * forward
        z = r / diagonal
        last, product = product, (r * z).sum(-1, keepdims=True)
        p = z + product / np.maximum(last, 1e-300) * p
    return x


def squared_error(u: Array, e: Array, dw: Array | None, db: Array | None) -> float:
    """Sum over rows and outputs of ``(e - u dw' - db)^2``; shapes as in :class:`Rows`."""
    total = 0.0
    for i in range(e.shape[1]):
        left = e[:, i].astype(np.float64)
        if dw is not None:
            left = left - u[:, i].astype(np.float64) @ dw[i].T
        if db is not None:
            left = left - db[i]
        total += float(np.square(left).sum())
    return total
