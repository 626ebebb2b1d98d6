"""What a chart shows on its data, as one sentence: the title of its card. Computed by rule from the
figures that are drawn; "" where the rule has nothing to say."""

from collections.abc import Mapping, Sequence

import pandas as pd

from jobs.wording import distinguishable, times
from ui.format import HOLD, number, of_unit, share

STEADY = 0.02  # a relative change below that is none
NO_GAIN = "No decoder is measurably faster than plain decoding"


def of_stages(values: Sequence[tuple[str, float]]) -> str:
    """Of perplexities by stage, (label, value), the untouched model first: what the worst stage
    costs and how much of it the last one wins back,

        won_back = (worst - last) / (worst - first)
    """
    if len(values) < 2:
        return ""
    (_, first), (last_label, last) = values[0], values[-1]
    worst_label, worst = max(values[1:], key=lambda pair: pair[1])
    if worst_label != last_label and worst > last > first:
        back = share((worst - last) / (worst - first), 0)
        if last_label.startswith(f"{worst_label}, "):  # one more step on the worst
            more = last_label.removeprefix(f"{worst_label}, ")
            return f"With {more}, {back} of the perplexity lost is won back"
        return f"{last_label} wins back {back} of the perplexity lost to {lower(worst_label)}"
    change = last / first - 1
    if abs(change) < STEADY:
        return f"{last_label} keeps the perplexity of {number(first)}"
    verb = "raises" if change > 0 else "lowers"
    return f"{last_label} {verb} perplexity from {number(first)} to {number(last)}"


def of_curves(frame: pd.DataFrame, quantity: str, main: str = "", unit: str = "") -> str:
    """Of lines over steps, a column each: change of `main`, or else of the last of the longest
    ones, from the mean of its first tenth to that of its last."""
    name, line = _spoken_of(frame, main)
    if line.empty:
        return ""
    values = line.to_numpy(float)
    tenth = max(1, len(values) // 10)
    first, last = values[:tenth].mean(), values[-tenth:].mean()
    whose = f"{name}: {lower(quantity)}" if len(frame.columns) > 2 else quantity
    if abs(last - first) <= STEADY * max(abs(first), abs(last)):
        return f"{whose} stays near {_with(unit, last)}"
    verb = "rises" if last > first else "falls"
    return f"{whose} {verb} from {number(first, 3)} to {_with(unit, last)}"


def _with(unit: str, value: float) -> str:
    return of_unit(value, unit, 3) if unit else number(value, 3)


def of_blocks(frame: pd.DataFrame, quantity: str, main: str = "", unit: str = "") -> str:
    """Of lines over blocks, as `of_curves` takes them: in which block one is largest and smallest.
    Blocks lie behind one another in the model, not in time."""
    name, line = _spoken_of(frame, main)
    whose = f"{name}: {lower(quantity)}" if len(frame.columns) > 2 else quantity
    blocks = frame.iloc[:, 0].loc[line.index]
    if line.empty:
        return ""
    low, high = line.idxmin(), line.idxmax()
    least, most = float(line[low]), float(line[high])
    if most - least <= STEADY * abs(most):
        return f"{whose} is the same in all blocks"
    return (
        f"{whose} is largest in block {blocks[high]:g}, {_with(unit, most)}, and smallest in block "
        f"{blocks[low]:g}, {_with(unit, least)}"
    )


def of_usage(frame: pd.DataFrame, quantity: str, unit: str) -> str:
    """Of what a process takes of the machine over time: the most of it, and the mean."""
    line = frame.iloc[:, 1].dropna()
    if line.empty:
        return ""
    return f"{quantity}: at most {_with(unit, line.max())}, {_with(unit, line.mean())} on average"


def of_rivals(
    frame: pd.DataFrame, quantity: str, better: str, unit: str = "", over_blocks: bool = False
) -> str:
    """Of lines of several runs, a column each: whose mean is best, and that of the next; of lines
    over steps the mean of their last tenth. `better`: "lower", "higher", or "" for neither."""
    lines = {str(name): frame[name].dropna() for name in frame.columns[1:]}
    ends = {x: y if over_blocks else y.tail(max(1, len(y) // 10)) for x, y in lines.items()}
    means = sorted(((y.mean(), x) for x, y in ends.items() if len(y)), reverse=better == "higher")
    if len(means) < 2 or not better:
        return ""
    (value, best), (other, rival) = means[:2]
    if abs(other - value) <= STEADY * max(abs(value), abs(other)):
        return f"{best} and {rival} are equally good: {lower(quantity)} {_with(unit, value)}"
    return f"{best} is best: {lower(quantity)} {_with(unit, value)}, {rival} {_with(unit, other)}"


def _spoken_of(frame: pd.DataFrame, main: str) -> "tuple[str, pd.Series[float]]":
    """The line a headline is about, without gaps; empty where none has two points."""
    lines = {str(name): frame[name].dropna() for name in frame.columns[1:]}
    lines = {name: values for name, values in lines.items() if len(values) > 1}
    if not lines:
        return "", pd.Series(dtype=float)
    most = max(len(values) for values in lines.values())
    name = main if main in lines else [n for n, v in lines.items() if len(v) == most][-1]
    return name, lines[name]


def of_cells(frame: pd.DataFrame, label: str) -> str:
    """Of a map of layers, rows (tensor, block, …, value): the layer with the largest value."""
    values = frame.iloc[:, -1].astype(float)
    if not values.notna().any():
        return ""
    row = frame.loc[values.abs().idxmax()]
    module = str(row.iloc[0]).removesuffix(".weight").rpartition(".")[2]
    unit = f"{HOLD}%" if str(frame.columns[-1]).endswith("%") else ""
    value = f"{number(float(row.iloc[-1]), 3)}{unit}"
    return f"{label} is largest in block {row.iloc[1]}, {module}: {value}"


def of_zeros(stages: Sequence[tuple[str, float]]) -> str:
    if not stages:
        return ""
    label, zeros = stages[-1]
    return f"{label}: {share(zeros)} of the weights are exactly zero"


def of_speed(decoders: Sequence[tuple[str, float, bool]]) -> str:
    """Of drafting decoders, (label, speed-up, significantly above 1): the fastest such one."""
    if not decoders:
        return ""
    faster = [(up, label) for label, up, measurable in decoders if measurable]
    if not faster:
        return NO_GAIN
    up, label = max(faster)
    return f"{label} decodes {times(up)} as fast as plain decoding"


def of_tasks(decoder: str, tasks: Mapping[str, float]) -> str:
    """Of one decoder's speed-ups by task: where it gains most and least."""
    if len(tasks) < 2:
        return ""
    most, least = (pick(tasks, key=lambda task: tasks[task]) for pick in (max, min))
    return f"{decoder}: {times(tasks[most])} in {most}, {times(tasks[least])} in {least}"


def of_break_even(decoders: Sequence[tuple[str, float, float]]) -> str:
    """Of decoders, (label, tokens per step, break-even): the one with the best ratio."""
    if not decoders:
        return ""
    label, tokens, even = max(decoders, key=lambda each: each[1] / each[2])
    verdict = "more than" if tokens > even else "less than"
    yields, needs = distinguishable([tokens, even], places=2)
    return f"{label} yields {yields} tokens per step, {verdict} the {needs} it needs to pay"


def of_parts(label: str, parts: Mapping[str, float]) -> str:
    """Of the parts of a decoding step, name -> milliseconds: the one that takes longest."""
    whole = sum(parts.values())
    if not whole:
        return ""
    name = max(parts, key=lambda part: parts[part])
    return f"{name} takes {share(parts[name] / whole, 0)} of a step of {label}"


def lower(label: str) -> str:
    """With a small first letter; "DL-QAT" and "SDS" stay as they are."""
    return label if label[:2].isupper() else label[:1].lower() + label[1:]
