"""Headlines of charts: the finding in the plotted figures as one sentence, computed by rules.

A headline is the title of the chart's card. It is empty if there is nothing to report."""

from collections.abc import Mapping, Sequence

import pandas as pd

from jobs.wording import distinguishable, relative_change, times
from ui.format import NBSP, number, of_unit, share

NEGLIGIBLE_CHANGE = 0.02  # relative changes below count as no change
MAX_NAMED = 3  # runs in a headline
NO_GAIN = "No decoder is measurably faster than plain decoding"


def stages_headline(
    values: Sequence[tuple[str, float]], rival: tuple[str, float] | None = None
) -> str:
    """Headline of perplexities by stage: the last stage against its rival, or else against the
    worst stage if that is another.

    Args:
        values: label and perplexity of each stage, beginning with the original model.
        rival: label and perplexity of the stage without the step that is judged.
    """
    if len(values) < 2:
        return ""
    (_, first), (last_label, last) = values[0], values[-1]
    label, value = rival or max(values[1:], key=lambda pair: pair[1])
    if label != last_label and (rival or value > last > first):
        own, other, _ = distinguishable([last, value, first], 1 if min(value, last) >= 10 else 2)
        return f"{last_label} reaches perplexity {own}; {lower(label)}: {other}"
    change = last / first - 1
    if abs(change) < NEGLIGIBLE_CHANGE:
        return f"{last_label} keeps the perplexity of {number(first)}"
    verb = "raises" if change > 0 else "lowers"
    return f"{last_label} {verb} perplexity from {number(first)} to {number(last)}"


def curves_headline(frame: pd.DataFrame, quantity: str, main: str = "", unit: str = "") -> str:
    """Headline of curves over steps: change from the mean of the first tenth to that of the last.

    Args:
        frame: steps in the first column, one line in each other column.
        main: column the headline is about; if absent, the last one of the longest lines.
    """
    name, line = _main_line(frame, main)
    if line.empty:
        return ""
    values = line.to_numpy(float)
    tenth = max(1, len(values) // 10)
    first, last = values[:tenth].mean(), values[-tenth:].mean()
    subject = f"{name}: {lower(quantity)}" if len(frame.columns) > 2 else quantity
    if abs(last - first) <= NEGLIGIBLE_CHANGE * max(abs(first), abs(last)):
        return f"{subject} stays near {_with_unit(unit, last)}"
    verb = "rises" if last > first else "falls"
    return f"{subject} {verb} from {number(first, 3)} to {_with_unit(unit, last)}"


def _with_unit(unit: str, value: float) -> str:
    return of_unit(value, unit, 3) if unit else number(value, 3)


def blocks_headline(frame: pd.DataFrame, quantity: str, main: str = "", unit: str = "") -> str:
    """Headline of lines over blocks: the blocks with the largest and the smallest value.

    Arguments as in `curves_headline`; a change from first to last would have no meaning here."""
    name, line = _main_line(frame, main)
    subject = f"{name}: {lower(quantity)}" if len(frame.columns) > 2 else quantity
    blocks = frame.iloc[:, 0].loc[line.index]
    if line.empty:
        return ""
    low, high = line.idxmin(), line.idxmax()
    least, most = float(line[low]), float(line[high])
    if most - least <= NEGLIGIBLE_CHANGE * abs(most):
        return f"{subject} is the same in all blocks"
    return (
        f"{subject} is largest in block {blocks[high]:g}, {_with_unit(unit, most)}, "
        f"and smallest in block {blocks[low]:g}, {_with_unit(unit, least)}"
    )


def usage_headline(frame: pd.DataFrame, quantity: str, unit: str) -> str:
    """Headline of a resource's use over time: maximum and mean of the second column."""
    line = frame.iloc[:, 1].dropna()
    if line.empty:
        return ""
    maximum, mean = _with_unit(unit, line.max()), _with_unit(unit, line.mean())
    return f"{quantity}: at most {maximum}, {mean} on average"


def rivals_headline(
    frame: pd.DataFrame, quantity: str, unit: str = "", over_blocks: bool = False
) -> str:
    """Headline of the same curve of several runs: the mean of each, the lowest first.

    Args:
        frame: steps or blocks in the first column, one run in each other column.
        over_blocks: take the mean over all blocks, rather than over the last tenth of the steps.
    """
    lines = {str(name): frame[name].dropna() for name in frame.columns[1:]}
    ends = {x: y if over_blocks else y.tail(max(1, len(y) // 10)) for x, y in lines.items()}
    means = {name: float(values.mean()) for name, values in ends.items() if len(values)}
    ranked = sorted(means.items(), key=lambda mean: mean[1])
    return lead_headline(quantity, ranked, f"{NBSP}{unit}" if unit else "")


def _main_line(frame: pd.DataFrame, main: str) -> "tuple[str, pd.Series[float]]":
    """Name and values of the line of a headline, without gaps; empty if no line has two points."""
    lines = {str(name): frame[name].dropna() for name in frame.columns[1:]}
    lines = {name: values for name, values in lines.items() if len(values) > 1}
    if not lines:
        return "", pd.Series(dtype=float)
    longest = max(len(values) for values in lines.values())
    name = main if main in lines else [n for n, v in lines.items() if len(v) == longest][-1]
    return name, lines[name]


def cells_headline(frame: pd.DataFrame, label: str) -> str:
    """Headline of a map of layers: the layer with the largest magnitude.

    Args:
        frame: columns tensor, block, …, value.
    """
    values = frame.iloc[:, -1].astype(float)
    if not values.notna().any():
        return ""
    row = frame.loc[values.abs().idxmax()]
    module = str(row.iloc[0]).removesuffix(".weight").rpartition(".")[2]
    unit = f"{NBSP}%" if str(frame.columns[-1]).endswith("%") else ""
    value = f"{number(float(row.iloc[-1]), 3)}{unit}"
    return f"{label} is largest in block {row.iloc[1]}, {module}: {value}"


def lead_headline(
    quantity: str, values: Sequence[tuple[str, float]], unit: str = "", *, is_decided: bool = True
) -> str:
    """Headline of a figure of several runs: the lead of the best one over the next.

    Args:
        values: name and value of each run, the best first.
        is_decided: False if the first two do not differ significantly.
    """
    if len(values) < 2:
        return ""
    first, second, *others = (f"{name} {number(value)}{unit}" for name, value in values[:MAX_NAMED])
    rival = values[1][1]
    lead = f", {relative_change(values[0][1], rival)} " if is_decided and rival else "; "
    end = "" if is_decided else " (not significantly different)"
    return f"{quantity}: {'; '.join([f'{first}{lead}{second}{end}', *others])}"


def zeros_headline(stages: Sequence[tuple[str, float]]) -> str:
    """Headline of histograms by stage, (label, share of zeros): zeros of the last stage."""
    if not stages:
        return ""
    label, zeros = stages[-1]
    return f"{label}: {share(zeros)} of the weights are exactly zero"


def speed_headline(
    decoders: Sequence[tuple[str, float, bool]], ranges: Mapping[str, tuple[float, float]]
) -> str:
    """Headline of decoders with a drafter: the fastest that is significantly faster, and the next.

    Args:
        decoders: name, speed-up, and True if the speed-up is significantly above 1.
        ranges: name -> lowest and highest speed-up of the repetitions.
    """
    if not decoders:
        return ""
    faster = [(speed_up, label) for label, speed_up, is_significant in decoders if is_significant]
    if not faster:
        return NO_GAIN
    speed_up, label = max(faster)
    others = [(up, name) for name, up, _ in decoders if name != label and up <= speed_up]
    gain = f"{label} decodes {times(speed_up)} as fast as plain decoding"
    if not others:
        return gain
    next_best, rival = max(others)
    overlap = label in ranges and rival in ranges and ranges[rival][1] >= ranges[label][0]
    return f"{gain}; {lower(rival)} {times(next_best)}{', ranges overlap' if overlap else ''}"


def tasks_headline(decoder: str, tasks: Mapping[str, float]) -> str:
    """Headline of one decoder's speed-ups by task: the highest and the lowest."""
    if len(tasks) < 2:
        return ""
    best, worst = (choose(tasks, key=lambda task: tasks[task]) for choose in (max, min))
    return f"{decoder}: {times(tasks[best])} in {best}, {times(tasks[worst])} in {worst}"


def break_even_headline(decoders: Sequence[tuple[str, float, float]]) -> str:
    """Headline of the tokens per step of decoders: the decoder farthest above its break-even.

    Args:
        decoders: label, tokens per step, and tokens per step that pay for the cost of drafting.
    """
    if not decoders:
        return ""
    label, tokens, break_even = max(decoders, key=lambda decoder: decoder[1] / decoder[2])
    verdict = "more than" if tokens > break_even else "less than"
    yields, needs = distinguishable([tokens, break_even], places=2)
    return f"{label} yields {yields} tokens per step, {verdict} the {needs} it needs to pay"


def parts_headline(label: str, parts: Mapping[str, float]) -> str:
    """Headline of the milliseconds of each part of a decoding step: the longest part."""
    total_ms = sum(parts.values())
    if not total_ms:
        return ""
    name = max(parts, key=lambda part: parts[part])
    return f"{name} takes {share(parts[name] / total_ms, 0)} of a step of {label}"


def lower(label: str) -> str:
    """The label with a lower-case first letter; abbreviations such as "DL-QAT" do not change."""
    return label if label[:2].isupper() else label[:1].lower() + label[1:]
