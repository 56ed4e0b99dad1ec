"""Train the drone detector on the processor, and write it as ONNX.

    python -m examples.drone.train                 # about half an hour on one core; goes on where it was stopped
    python -m examples.drone.train --export-only   # the shipped weights to drone.onnx
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional

from examples.drone.data import SIZE, scene
from examples.drone.net import STRIDES, TinyYolo, centres, decode

HERE = Path(__file__).resolve().parent
WEIGHTS = HERE / "drone.safetensors"
MODEL = HERE / "drone.onnx"
#: Where pictures and checkpoints are kept while training.
CACHE = HERE.parent.parent / "benchmarks" / ".cache" / "drone"
#: Longer side of the boxes that a level learns, in pixels: both learn those between.
REACH = ((0.0, 40.0), (26.0, 1e9))
#: Cells within so many strides of a box's centre belong to it.
RADIUS = 1.25
BATCH = 16


def pictures(split: str, count: int, cache: Path = CACHE) -> tuple[np.ndarray, list[np.ndarray]]:
    """Pictures uint8[n, h, w, 3] and boxes float32[k, 4] of each, drawn once and then kept."""
    cache.mkdir(parents=True, exist_ok=True)
    path = cache / f"{split}_{count}.npz"
    if not path.exists():
        made = [scene(split, number) for number in range(count)]
        part = path.with_name(f"{path.stem}.part.npz")
        np.savez(part, pictures=np.stack([one.picture for one in made]), boxes=np.concatenate([one.boxes for one in made]),
                 counts=np.array([len(one.boxes) for one in made]))  # fmt: skip
        part.replace(path)
    held = np.load(path)
    return held["pictures"], np.split(held["boxes"], np.cumsum(held["counts"])[:-1])


def assign(boxes: Tensor, h: int, w: int, level: int) -> Tensor:
    """Which box each cell of a level learns, int64[h * w]; -1 for none. Where several claim a cell, the smallest has it."""
    stride, (low, high) = STRIDES[level], REACH[level]
    owner = torch.full((h * w,), -1)
    if not len(boxes):
        return owner
    at = centres(h, w, stride).T[:, None]
    middle, size = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    off = (at - middle).abs()
    # A box smaller than a stride may hold no centre: the cell that its own centre lies in is always its.
    inside = (off < size / 2).all(-1) & (off < RADIUS * stride).all(-1) | (off <= stride / 2).all(-1)
    longest = size.amax(1)
    claims = inside & (longest >= low) & (longest < high)
    area = torch.where(claims, size.prod(1), torch.inf)
    least, which = area.min(1)
    owner[least.isfinite()] = which[least.isfinite()]
    return owner


def iou(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Intersection over union, and the same less the share of the hull that neither fills (GIoU); ``a``, ``b``: [n, 4] corners."""
    low, high = torch.maximum(a[:, :2], b[:, :2]), torch.minimum(a[:, 2:], b[:, 2:])
    common = (high - low).clamp(min=0).prod(1)
    union = (a[:, 2:] - a[:, :2]).prod(1) + (b[:, 2:] - b[:, :2]).prod(1) - common
    hull = (torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])).prod(1)
    ratio = common / union.clamp(min=1e-6)
    return ratio, ratio - (hull - union) / hull.clamp(min=1e-6)


def loss_of(network: TinyYolo, images: Tensor, boxes: list[Tensor]) -> Tensor:
    """Quality focal loss of the scores (a cell's target is how well its box fits) and GIoU loss of the boxes."""
    total = images.new_zeros(())
    found = max(sum(len(b) for b in boxes), 1)
    for level, raw in enumerate(network.raw(images)):
        h, w = raw.shape[2:]
        corners, logits = decode(raw, centres(h, w, STRIDES[level]), STRIDES[level])
        owners = torch.stack([assign(b, h, w, level) for b in boxes])
        target = torch.zeros_like(owners, dtype=torch.float32)
        picture, cell = torch.nonzero(owners >= 0, as_tuple=True)
        if len(picture):
            wanted = torch.stack([boxes[p][o] for p, o in zip(picture.tolist(), owners[picture, cell].tolist(), strict=True)])
            fit, better = iou(corners[picture, :, cell], wanted)
            target[picture, cell] = fit.detach().clamp(min=0)
            total = total + 2 * (1 - better).sum() / found
        score = logits[:, 0]
        weight = (score.sigmoid().detach() - target).abs() ** 2
        total = total + (weight * functional.binary_cross_entropy_with_logits(score, target, reduction="none")).sum() / found * 4
    return total


def batches(count: int, epoch: int) -> list[np.ndarray]:
    order = np.random.default_rng(epoch).permutation(count)
    return [order[start : start + BATCH] for start in range(0, count - BATCH + 1, BATCH)]


def fed(held: np.ndarray, boxes: list[np.ndarray], chosen: np.ndarray, rng: np.random.Generator) -> tuple[Tensor, list[Tensor]]:
    """A batch, half of it mirrored, brightness and colours drawn anew."""
    images = held[chosen].astype(np.float32) / 255
    targets = [boxes[n].copy() for n in chosen]
    for i in np.flatnonzero(rng.random(len(chosen)) < 0.5):
        images[i] = images[i, :, ::-1]
        targets[i][:, [0, 2]] = SIZE[1] - targets[i][:, [2, 0]]
    images = images * rng.uniform(0.85, 1.15, (len(chosen), 1, 1, 3)).astype(np.float32)
    images += rng.uniform(-0.06, 0.06, (len(chosen), 1, 1, 1)).astype(np.float32)
    return torch.from_numpy(images.clip(0, 1).transpose(0, 3, 1, 2).copy()), [torch.from_numpy(t) for t in targets]


def train(count: int, epochs: int, rate: float, checkpoint: Path, seed: int = 0) -> TinyYolo:
    """The network at its running average; goes on from ``checkpoint`` where there is one."""
    torch.manual_seed(seed)
    network = TinyYolo()
    average = copy.deepcopy(network).eval()
    decayed = [p for p in network.parameters() if p.ndim > 1]
    plain = [p for p in network.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.02}, {"params": plain, "weight_decay": 0.0}], lr=rate)
    first = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        network.load_state_dict(state["network"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        first = int(state["epoch"])
    held, boxes = pictures("train", count)
    steps = epochs * (count // BATCH)
    step = first * (count // BATCH)
    for epoch in range(first, epochs):
        start, spent, total = time.perf_counter(), time.process_time(), 0.0
        rng = np.random.default_rng(1000 + epoch)
        network.train()
        for chosen in batches(count, epoch):
            share = step / steps
            for group in optimizer.param_groups:
                group["lr"] = rate * min(1.0, (step + 1) / 200) * (0.5 * (1 + math.cos(math.pi * share)) * 0.98 + 0.02)
            loss = loss_of(network, *fed(held, boxes, chosen, rng))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(network.parameters(), 10.0)
            optimizer.step()
            step += 1
            total += float(loss.detach())
            keep = min(0.998, (1 + step) / (10 + step))
            with torch.no_grad():
                for mine, theirs in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
                    mine.copy_(theirs if not theirs.is_floating_point() else mine * keep + theirs * (1 - keep))
        part = checkpoint.with_suffix(".part")
        torch.save({"network": network.state_dict(), "average": average.state_dict(), "optimizer": optimizer.state_dict(),
                    "epoch": epoch + 1}, part)  # fmt: skip
        part.replace(checkpoint)
        print(f"epoch {epoch + 1} of {epochs}: loss {total / max(count // BATCH, 1):.3f}, {time.perf_counter() - start:.0f} s, "
              f"{time.process_time() - spent:.0f} s of the processor", flush=True)  # fmt: skip
    return average


def load(path: Path = WEIGHTS) -> TinyYolo:
    """The trained network from its weights."""
    from safetensors.torch import load_file

    network = TinyYolo()
    held = load_file(path)
    network.load_state_dict({name: value.float() if value.is_floating_point() else value for name, value in held.items()})
    return network.eval()


def export(network: TinyYolo, path: Path) -> None:
    """Write ONNX: input ``image``, output ``boxes``, any batch size; its metadata say how pictures are fed, as Ultralytics' do."""
    part = path.with_suffix(".part")
    torch.onnx.export(
        network.eval(), (torch.rand(2, 3, *SIZE),), str(part), dynamo=True, external_data=False, opset_version=18, verbose=False,
        input_names=["image"], output_names=["boxes"], dynamic_shapes=({0: torch.export.Dim("batch")},),
    )  # fmt: skip
    written = onnx.load(part)
    onnx.helper.set_model_props(written, {"names": "{0: 'drone'}", "stride": str(STRIDES[-1]), "imgsz": str(list(SIZE))})
    onnx.save(written, part)
    part.replace(path)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=6000)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--export-only", action="store_true")
    options = parser.parse_args()
    if options.export_only:
        export(load(), options.out / MODEL.name)
        return
    from safetensors.torch import save_file

    network = train(options.pictures, options.epochs, options.rate, CACHE / "checkpoint.pt")
    part = options.out / f"{WEIGHTS.name}.part"
    # Half precision is enough to go on from, and half as much to ship; the model is made from just these weights.
    save_file({name: value.half() if value.is_floating_point() else value for name, value in network.state_dict().items()}, part)
    part.replace(options.out / WEIGHTS.name)
    export(load(options.out / WEIGHTS.name), options.out / MODEL.name)
    print(f"written: {options.out / WEIGHTS.name}, {options.out / MODEL.name}")


if __name__ == "__main__":
    main()
