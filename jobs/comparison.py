"""Stages of a run compared in words: what is said to be below another lies below it by more than
the choice of the text explains.

Does not import numpy: `ui.runs.results` makes a comparison of what a run has stored.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from backend.statistics.paired import PairedRatio
from jobs.wording import fixed, relative_change

HAS = "has a perplexity"


@dataclass(frozen=True)
class StageComparison:
    """The perplexities of the stages of a run. `perplexity`: stage -> value. `ratio`: of two
    stages; None where their losses by window were not stored, or are too few. Then the values
    decide."""

    perplexity: Mapping[str, float]
    ratio: Callable[[str, str], PairedRatio | None] = lambda *_: None

    def order(self, stage: str, rival: str) -> Literal["below", "above", ""]:
        """Where the perplexity of `stage` lies; empty where the two do not differ significantly."""
        ratio = self.ratio(stage, rival)
        if ratio is not None:
            return "" if not ratio.told_apart else "below" if ratio.value < 1 else "above"
        difference = self.perplexity[stage] - self.perplexity[rival]
        return "below" if difference < 0 else "above" if difference else ""

    def clause(self, stage: str, rivals: Mapping[str, str], verb: str = HAS) -> str:
        """In words, where it lies: "has a perplexity 10.5 % lower than GPTQ (8.1 to 12.7 %)".
        `rivals`: stage -> its name in the sentence."""
        parts, last = list[str](), ""
        for rival, name in rivals.items():
            said, place = self._place(stage, rival, name, verb)
            parts.append(place if said == last else f"{said} {place}")
            last = said
        return " and ".join(parts)

    def _place(self, stage: str, rival: str, name: str, verb: str) -> tuple[str, str]:
        """A verb and what follows it."""
        ratio = self.ratio(stage, rival)
        if ratio is None:
            value, other = self.perplexity[stage], self.perplexity[rival]
            return verb, f"{relative_change(value, other)} {name}"
        if not ratio.told_apart:
            span = f"{fixed(ratio.low, 3)} to {fixed(ratio.high, 3)}"
            return "is", f"not significantly different from {name} ({span} times its perplexity)"
        ends = sorted(abs(100 * (end - 1)) for end in (ratio.low, ratio.high))
        span = " to ".join(fixed(end, 1) for end in ends)
        return verb, f"{relative_change(ratio.value, 1.0)} {name} ({span} %)"
