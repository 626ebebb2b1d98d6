"""What a paired comparison comes to; see `backend.statistics.paired`. Words and the command line
need it without NumPy."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PairedRatio:
    """Ratio of two perplexities on the same windows, with its 95 % interval."""

    value: float
    low: float
    high: float
    windows: int

    @property
    def told_apart(self) -> bool:
        """Whether the interval leaves out 1."""
        return not self.low <= 1 <= self.high
