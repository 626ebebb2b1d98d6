"""The views of one tensor. Each is a chart, its question, and its data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import plotly.graph_objects as go

from backend.statistics.names import channel_profile
from ui.charts.channels import (
    Channels,
    channel_lines,
    channels_note,
    outliers,
    outliers_in_words,
    ranked,
)
from ui.charts.histograms import difference, gaps_beyond, mirror, overlay
from ui.charts.magnitudes import (
    Magnitudes,
    cumulative,
    magnitude_histogram,
    magnitudes_note,
    magnitudes_of,
)
from ui.charts.series import Series, cut_off_peaks, cutoffs, series_note, shared
from ui.pages.weights.data import TensorView
from ui.pages.weights.selection import DENSE, main_stages
from ui.pages.weights.shape_text import shape_in_words
from ui.pages.weights.stage_steps import stage_steps_figure
from ui.widgets.chart import note_html
from ui.widgets.weight_tables import bins_table, channel_table, magnitude_table

ASKED = {
    "overlay": "What did each step do to the shape of this tensor's weights?",
    "mirror": "How does the shape before differ from the shape after?",
    "magnitude": "How large are the weights that are left, on a scale that shows the small ones?",
    "cumulative": "What share of the weights is smaller than a given size?",
    "difference": "Where on the axis did weights come from, and where did they go?",
    "channels": "Do some channels stand out, and were they pruned like the others?",
    "story": "How does one step after the other change the shape?",
}
NONE_CHOSEN = "Choose a stage to see the weights at that stage."
NOT_YET = "This tensor has not reached any of the chosen stages."
ONE_STAGE = "Choose two stages: the first is drawn above, the last below."
NO_BASE = "Choose a stage besides Dense to see its difference to Dense."
NO_EMPTY = "A log axis leaves out bins without weights."
NOT_STORED = "This run has stored no {} of this tensor; runs started from now on do."


def tensor_view(looked: TensorView, at: str = "") -> list[Any]:
    """Figure or sentence, note, table.

    Args:
        at: the stage the story begins with.
    """
    view = looked.choice.view
    figure, words, table = _story(looked, at) if view == "story" else VIEWS[view](looked)
    if isinstance(figure, go.Figure):
        figure.layout.meta = {**(figure.layout.meta or {}), "name": f"{_name(looked)}-{view}"}
    return [figure, note_html(ASKED[view], " ".join(w for w in words if w)), table]


Found = tuple[Any, Sequence[str], str]


def _name(looked: TensorView) -> str:
    against = f"-{looked.other.job.run}" if looked.other else ""
    return f"{looked.weights.job.run}{against}-{looked.choice.tensor}"


def _none(looked: TensorView) -> Found:
    return NOT_YET if looked.choice.show else NONE_CHOSEN, [looked.apart()], ""


def _not_stored(looked: TensorView, what: str) -> Found:
    return NOT_STORED.format(what), [looked.apart()], ""


def _histogram_table(looked: TensorView, series: Sequence[Series]) -> str:
    return bins_table(shared(series), f"{_name(looked)}-histogram")


def _overlay(looked: TensorView) -> Found:
    series = looked.series()
    if not series:
        return _none(looked)
    log = looked.choice.y == "log"
    drawn = shared(series)
    words = [
        series_note(drawn, whole=log),
        NO_EMPTY if log else cut_off_peaks(drawn),
        *_marked(series),
    ]
    figure = overlay(series, log_y=log)
    return figure, [*words, looked.apart()], _histogram_table(looked, series)


def _marked(series: Sequence[Series]) -> list[str]:
    """In words: what the dotted lines are."""
    found = cutoffs(series)
    if not found:
        return []
    return ["Dotted: the cut-off, below which as many dense weights lie as became zero."]


def _mirror(looked: TensorView) -> Found:
    own = [s for s in looked.choice.show if s in looked.snapshots]
    if not own:
        return _none(looked)
    last = own[-1]
    if looked.other is not None:
        if last not in looked.theirs:
            return looked.apart(), [], ""
        pair = [looked.one(last), looked.one(last, there=True)]
    elif len(own) > 1:
        pair = [looked.one(own[0]), looked.one(last)]
    else:
        return ONE_STAGE, [], ""
    drawn = shared(pair)
    words = [series_note(drawn), cut_off_peaks(drawn), *_marked(pair), looked.apart()]
    return mirror(*pair), words, _histogram_table(looked, pair)


def _difference(looked: TensorView) -> Found:
    own = [s for s in looked.choice.show if s in looked.snapshots]
    if not own:
        return _none(looked)
    if looked.other is not None:
        both = [s for s in own if s in looked.theirs]
        pairs = [(looked.one(s), looked.one(s, there=True)) for s in both]
        if not pairs:
            return looked.apart(), [], ""
    else:
        base = looked.snapshots.get(DENSE)
        pairs = [(looked.one(s), looked.one(DENSE)) for s in own if s != DENSE and base]
        if not pairs:
            return NO_BASE, [], ""
    drawn = shared([s for pair in pairs for s in pair])
    words = [series_note(drawn[:1]), gaps_beyond(pairs), *_marked(drawn), looked.apart()]
    return difference(pairs), words, _histogram_table(looked, _once(pairs))


def _once(pairs: Sequence[tuple[Series, Series]]) -> list[Series]:
    """Every series of the pairs once, bases first."""
    found = {s.label: s for _, s in pairs} | {s.label: s for s, _ in pairs}
    return [*found.values()]


def _magnitude(looked: TensorView) -> Found:
    drawn, missing = _magnitudes(looked)
    if not drawn:
        return missing
    log = looked.choice.y == "log"
    empty = NO_EMPTY if log else ""
    words = [magnitudes_note(drawn), empty, *_marked([m.series for m in drawn]), looked.apart()]
    return (
        magnitude_histogram(drawn, log_y=log),
        words,
        magnitude_table(drawn, f"{_name(looked)}-magnitudes"),
    )


def _cumulative(looked: TensorView) -> Found:
    drawn, missing = _magnitudes(looked)
    if not drawn:
        return missing
    words = [
        magnitudes_note(drawn),
        "A line begins at the share of exact zeros.",
        *_marked([m.series for m in drawn]),
        looked.apart(),
    ]
    return cumulative(drawn), words, magnitude_table(drawn, f"{_name(looked)}-magnitudes")


def _magnitudes(looked: TensorView) -> tuple[list[Magnitudes], Found]:
    series = looked.series(magnitudes=True)
    if not series:
        return [], _none(looked)
    return magnitudes_of(series), _not_stored(looked, "magnitudes")


def _channels(looked: TensorView) -> Found:
    choice = looked.choice
    drawn = _stages_of(looked, choice.measure)
    if not drawn:
        return _not_stored(looked, "channels") if looked.series() else _none(looked)
    found, log = outliers(drawn[0].values), choice.y == "log"
    zeros = [c for c in _stages_of(looked, "zeros") if c.stage != DENSE]
    figure = channel_lines(
        drawn,
        side=choice.side,
        measure=choice.measure,
        by_size=choice.order == "size",
        log_y=log,
        outliers=found.tolist(),
    )
    words = [channels_note(drawn, log), outliers_in_words(found, zeros), looked.apart()]
    name = f"{_name(looked)}-{choice.side}-{choice.measure}"
    table = channel_table(drawn, ranked(drawn[0], choice.order == "size").tolist(), name)
    return figure, words, table


def _stages_of(looked: TensorView, measure: str) -> list[Channels]:
    """One figure of all channels at every stage drawn, in both runs."""
    choice = looked.choice
    name, scale = channel_profile(choice.side, measure), 100.0 if measure == "zeros" else 1.0
    found = []
    for there, run in ((False, looked.weights), (True, looked.other)):
        held, known = looked.profiles(run, name), looked.theirs if there else looked.snapshots
        for stage in choice.show:
            if stage in held and stage in known:
                one = looked.one(stage, there=there)
                found.append(Channels(one.label, one.stroke, stage, scale * held[stage].values))
    return [c for c in found if len(c.values) == len(found[0].values)]


def _story(looked: TensorView, at: str) -> Found:
    """The stages a tensor goes through, without the side ways."""
    stages = main_stages([*looked.snapshots])
    series = [Series(s.snapshot, looked.weights.labels[stage], s.stroke)
              for stage in stages for s in [looked.one(stage)]]  # fmt: skip
    said = [shape_in_words(s) for s in series]
    drawn = shared(series)
    words = [series_note(drawn), cut_off_peaks(drawn), "Dotted: the first step."]
    return stage_steps_figure(series, said, at), words, _histogram_table(looked, series)


VIEWS: dict[str, Callable[[TensorView], Found]] = {
    "overlay": _overlay,
    "mirror": _mirror,
    "magnitude": _magnitude,
    "cumulative": _cumulative,
    "difference": _difference,
    "channels": _channels,
}
