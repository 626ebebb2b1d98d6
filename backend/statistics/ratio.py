"""Result of a paired comparison, see `backend.statistics.paired`. Does not import NumPy, which the
command line can do without."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PairedRatio:
    """Ratio of two perplexities on the same windows, with its 95 % interval.

    Attributes:
        value: ratio of the perplexities.
        low: lower end of the interval.
        high: upper end of the interval.
        windows: number of windows.
    """

    value: float
    low: float
    high: float
    windows: int

    @property
    def is_significant(self) -> bool:
        """True if the interval does not contain 1."""
        return not self.low <= 1 <= self.high
