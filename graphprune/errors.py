"""The errors a user can meet, each one clear message, each with the exit code it ends a run with."""

from __future__ import annotations


class GraphPruneError(Exception):
    """Base of every error raised on purpose. ``exit_code`` is what the command line ends with."""

    exit_code = 2


class UsageError(GraphPruneError):
    """An option, a pass name or an argument that cannot be used as given."""


class ModelError(GraphPruneError):
    """A model file that cannot be read, or is not a valid model."""


class ExportError(ModelError):
    """A torch module that torch cannot make a graph of."""


class DataError(GraphPruneError):
    """Calibration or evaluation data that does not fit the model."""


class UnprovableError(GraphPruneError):
    """A comparison that would prove nothing, whatever the cut; nothing is written."""


class OutputError(GraphPruneError):
    """An output that cannot be written."""


class RewriteError(GraphPruneError):
    """A cut that the rewriter could not carry through; nothing is written."""

    exit_code = 3


class VerificationError(GraphPruneError):
    """A cut model that does not agree with the masked original; nothing is written."""

    exit_code = 3


class NotFasterError(GraphPruneError):
    """A cut under a latency budget that measurement shows to be no faster; nothing is written."""


class NothingPrunableError(UsageError):
    """Every axis is frozen or kept."""
