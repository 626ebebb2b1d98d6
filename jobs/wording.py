"""Words and tables for people. Figures in sentences have a typographic minus, no "−0.0", and as
many decimals as it takes to tell different figures apart. Stages of a run are compared: what is
said to be below another lies below it by more than the choice of the text explains. Answers become
aligned columns. Does not import numpy."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from backend.statistics.ratio import PairedRatio

# times the perplexity of the dense model: a rule of thumb of ours. Of SmolLM2-135M in few bits,
# texts at 1.02 times read like the dense model's, at 1.74 times they repeat themselves
LITTLE, SOME, FAR = 1.1, 1.5, 1000


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Lines of aligned columns."""
    cells = [[*header], *([str(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    aligned = (map(str.ljust, row, widths) for row in cells)
    return "\n".join("  ".join(row).rstrip() for row in aligned)


def as_text(answer: Any) -> str:
    """Any answer: a list of records as a table, a record as lines, of what is no structure."""
    if isinstance(answer, Mapping):
        return table(("", ""), answer.items()).lstrip()
    if not isinstance(answer, list):
        return str(answer)
    if not answer or not isinstance(answer[0], Mapping):
        return "\n".join(map(str, answer)) or "None."
    named = [
        key
        for key in answer[0]
        if all(isinstance(each.get(key), (str, int, float, type(None))) for each in answer)
    ]
    rows = ([_cell(each.get(key)) for key in named] for each in answer)
    return table(named, rows)


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def count(number: int) -> str:
    """1 run, 12 runs."""
    return f"{number:,} run{'' if number == 1 else 's'}"


def names(runs: Sequence[str]) -> str:
    """The name of a single run, or "3 runs"."""
    return runs[0] if len(runs) == 1 else count(len(runs))


def named(records: Sequence[Mapping[str, Any]]) -> str:
    """The same, of records."""
    return names([each["id"] for each in records])


def fixed(value: float, places: int) -> str:
    """A figure with so many decimals: "1,234.5", "−0.3"; what rounds to zero has no sign."""
    text = f"{value:,.{places}f}"
    return text.replace("-", "−" if float(text.replace(",", "")) else "")


def signed(value: float, places: int) -> str:
    """A change with its sign: "+7.7", "−0.3"; "0.0" where it rounds to zero."""
    text = fixed(value, places)
    changed = float(text.replace(",", "").replace("−", "-")) > 0
    return f"+{text}" if changed else text


def times(factor: float, places: int = 2) -> str:
    """A factor: "1.32 ×", never broken between lines."""
    return f"{fixed(factor, places)}\u00a0×"


def apart(values: Sequence[float], places: int = 1, most: int = 4) -> list[str]:
    """Figures that stand in one sentence, all with the fewest decimals, from `places` to `most`,
    that tell as many of them apart as can be."""
    written = [[fixed(value, n) for value in values] for n in range(places, most + 1)]
    return next(texts for texts in written if len({*texts}) == len({*written[-1]}))


def extent(values: Iterable[float], write: Callable[[float], str], joint: str = " to ") -> str:
    """The smallest and the largest value, as in "3 to 5"; once where they read the same."""
    values = [*values]
    low, high = write(min(values)), write(max(values))
    return low if low == high else f"{low}{joint}{high}"


def relative_change(value: float, reference: float) -> str:
    """ "10.5 % lower than", "3.0 % higher than", or "equal to"."""
    change = fixed(100 * abs(value / reference - 1), 1)
    if not float(change.replace(",", "")):
        return "equal to"
    return f"{change} % {'lower' if value < reference else 'higher'} than"


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

    def lost(self, stage: str, dense: str, remedy: str) -> tuple[str, str]:
        """In words, what a compressed model lost, and what to do then. `remedy`: what loses less,
        as a clause; may be empty."""
        after, before = self.perplexity[stage], self.perplexity[dense]
        ratio, (now, then) = after / before, apart([after, before], places=2)
        higher = f"{times(ratio, 1)} as high" if ratio >= 2 else f"{100 * (ratio - 1):.1f} % higher"
        higher = higher if ratio <= FAR else f"more than {times(FAR, 0)} as high"
        less = f" Less is usually lost with {remedy}." if remedy else ""
        figures = f"perplexity {now} instead of {then}"
        if self.order(stage, dense) != "above" or now == then:
            return f"No loss is measurable on this text: {figures}.", ""
        told = f"was lost: {figures}, {higher}."
        if ratio <= LITTLE:
            return f"Little {told}", ""
        if ratio <= SOME:
            return f"Some {told}", f"Read its texts before you use it.{less}"
        return f"Too much {told}", f"Its texts probably repeat themselves or make no sense.{less}"

    def clause(self, stage: str, rivals: Mapping[str, str], verb: str = "has a perplexity") -> str:
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
