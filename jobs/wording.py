"""Formatting of figures, tables and comparisons of stages as text.

Figures in sentences have a typographic minus, no "−0.0", and enough decimals to distinguish them. A
stage is described as better or worse only if the difference is significant for the evaluation text.
Does not import numpy.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from backend.statistics.ratio import PairedRatio

# Upper limits of the perplexity relative to the dense model; our rule of thumb. Texts of quantized
# SmolLM2-135M read like those of the dense model at 1.02 times; at 1.74 they repeat themselves.
SMALL_LOSS, MEDIUM_LOSS, MAX_DISPLAYED = 1.1, 1.5, 1000


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Format rows as aligned columns."""
    cells = [[*header], *([str(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    aligned = (map(str.ljust, row, widths) for row in cells)
    return "\n".join("  ".join(row).rstrip() for row in aligned)


def as_text(result: Any) -> str:
    """Format any result: a list of records as a table, a record as lines. Nested values are left
    out of tables."""
    if isinstance(result, Mapping):
        return table(("", ""), result.items()).lstrip()
    if not isinstance(result, list):
        return str(result)
    if not result or not isinstance(result[0], Mapping):
        return "\n".join(map(str, result)) or "None."
    columns = [
        column
        for column in result[0]
        if all(isinstance(record.get(column), (str, int, float, type(None))) for record in result)
    ]
    rows = ([_cell(record.get(column)) for column in columns] for record in result)
    return table(columns, rows)


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def count(number: int) -> str:
    """Format a number of runs: "1 run", "12 runs"."""
    return f"{number:,} run{'' if number == 1 else 's'}"


def run_names(runs: Sequence[str]) -> str:
    """Return the name of a single run, or the number of runs, such as "3 runs"."""
    return runs[0] if len(runs) == 1 else count(len(runs))


def record_names(records: Sequence[Mapping[str, Any]]) -> str:
    """Apply `run_names` to records."""
    return run_names([record["id"] for record in records])


def fixed(value: float, places: int) -> str:
    """Format a figure with a number of decimals: "1,234.5", "−0.3". Zero has no sign."""
    text = f"{value:,.{places}f}"
    return text.replace("-", "−" if float(text.replace(",", "")) else "")


def signed(value: float, places: int) -> str:
    """Format a change with its sign: "+7.7", "−0.3". Zero has no sign."""
    text = fixed(value, places)
    is_positive = float(text.replace(",", "").replace("−", "-")) > 0
    return f"+{text}" if is_positive else text


def times(factor: float, places: int = 2) -> str:
    """Format a factor with a non-breaking space: "1.32 ×"."""
    return f"{fixed(factor, places)}\u00a0×"


def distinguishable(values: Sequence[float], places: int = 1, max_places: int = 4) -> list[str]:
    """Format figures with the same number of decimals, at least `places` and as few as necessary to
    distinguish them."""
    texts_by_places = [[fixed(value, n) for value in values] for n in range(places, max_places + 1)]
    return next(texts for texts in texts_by_places if len({*texts}) == len({*texts_by_places[-1]}))


def extent(values: Iterable[float], write: Callable[[float], str], separator: str = " to ") -> str:
    """Format the smallest and the largest value: "3 to 5"; a single value if they are equal."""
    values = [*values]
    low, high = write(min(values)), write(max(values))
    return low if low == high else f"{low}{separator}{high}"


def relative_change(value: float, reference: float) -> str:
    """Return "10.5 % lower than", "3.0 % higher than", or "equal to"."""
    percent = fixed(100 * abs(value / reference - 1), 1)
    if not float(percent.replace(",", "")):
        return "equal to"
    return f"{percent} % {'lower' if value < reference else 'higher'} than"


@dataclass(frozen=True)
class StageComparison:
    """Perplexities of the stages of a run.

    Attributes:
        perplexity: stage -> perplexity.
        ratio: returns the ratio of two stages with its confidence interval; None without enough
            losses by window. The values are then compared directly.
    """

    perplexity: Mapping[str, float]
    ratio: Callable[[str, str], PairedRatio | None] = lambda *_: None

    def order(self, stage: str, rival: str) -> Literal["below", "above", ""]:
        """Compare the perplexity of two stages; empty without a significant difference."""
        ratio = self.ratio(stage, rival)
        if ratio is not None:
            return "" if not ratio.is_significant else "below" if ratio.value < 1 else "above"
        difference = self.perplexity[stage] - self.perplexity[rival]
        return "below" if difference < 0 else "above" if difference else ""

    def lost(self, stage: str, dense: str, remedy: str) -> tuple[str, str]:
        """Describe the loss of a compressed model, and return advice. `remedy` is a clause that
        names settings with a smaller loss; may be empty."""
        ratio = self.perplexity[stage] / self.perplexity[dense]
        value, dense_value = distinguishable(
            [self.perplexity[stage], self.perplexity[dense]], places=2
        )
        figures = f"perplexity {value} instead of {dense_value}"
        if self.order(stage, dense) != "above" or value == dense_value:
            return f"No measurable loss on this text: {figures}.", ""
        if ratio > MAX_DISPLAYED:
            increase = f"more than {times(MAX_DISPLAYED, 0)} as high"
        elif ratio >= 2:
            increase = f"{times(ratio, 1)} as high"
        else:
            increase = f"{100 * (ratio - 1):.1f} % higher"
        if ratio <= SMALL_LOSS:
            return f"Small loss: {figures}, {increase}.", ""
        advice = f" To reduce the loss, use {remedy}." if remedy else ""
        if ratio <= MEDIUM_LOSS:
            return f"Medium loss: {figures}, {increase}.", f"Read its texts before use.{advice}"
        return (
            f"Large loss: {figures}, {increase}.",
            f"Its texts probably repeat themselves or make no sense.{advice}",
        )

    def clause(self, stage: str, rivals: Mapping[str, str], verb: str = "has a perplexity") -> str:
        """Compare a stage with others: "has a perplexity 10.5 % lower than GPTQ (8.1 to 12.7 %)".
        `rivals` maps stages to their names in the sentence."""
        parts, previous_verb = list[str](), ""
        for rival, name in rivals.items():
            verb_phrase, object_phrase = self._comparison(stage, rival, name, verb)
            parts.append(
                object_phrase if verb_phrase == previous_verb else f"{verb_phrase} {object_phrase}"
            )
            previous_verb = verb_phrase
        return " and ".join(parts)

    def _comparison(self, stage: str, rival: str, name: str, verb: str) -> tuple[str, str]:
        """Return a verb phrase and its object."""
        ratio = self.ratio(stage, rival)
        if ratio is None:
            value, rival_value = self.perplexity[stage], self.perplexity[rival]
            return verb, f"{relative_change(value, rival_value)} {name}"
        if not ratio.is_significant:
            interval = f"{fixed(ratio.low, 3)} to {fixed(ratio.high, 3)}"
            return (
                "is",
                f"not significantly different from {name} ({interval} times its perplexity)",
            )
        ends = sorted(abs(100 * (end - 1)) for end in (ratio.low, ratio.high))
        interval = " to ".join(fixed(end, 1) for end in ends)
        return verb, f"{relative_change(ratio.value, 1.0)} {name} ({interval} %)"
