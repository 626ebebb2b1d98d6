"""The views of one tensor, each a chart, its note and its data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain

import plotly.graph_objects as go

from backend.statistics.names import JOINT, SINGULAR_VALUES, channel_profile, map_profile
from ui.charts.chart import Chart
from ui.charts.headlines import of_zeros
from ui.charts.histograms import difference, difference_note, mirror, overlay
from ui.charts.series import (
    Series,
    bins_frame,
    cut_off_peaks,
    cutoffs,
    on_shared_bins,
    series_note,
)
from ui.pages.weights.data import TensorView
from ui.pages.weights.selection import main_stages
from ui.pages.weights.shape_text import shape_in_words
from ui.pages.weights.tensor.channels import Channels, channels_chart
from ui.pages.weights.tensor.joint import JointCounts, joint_chart
from ui.pages.weights.tensor.magnitudes import cumulative_chart, magnitude_chart
from ui.pages.weights.tensor.matrix import MatrixImage, matrix_chart, matrix_surface
from ui.pages.weights.tensor.spectrum import Spectrum, spectrum_chart
from ui.pages.weights.tensor.stage_steps import stage_steps_figure
from ui.pages.weights.theory import OF_TENSOR
from ui.runs.weights import DENSE

QUESTIONS = {
    "overlay": "What did each step do to the distribution of this tensor's weights?",
    "mirror": "How do the distributions before and after differ?",
    "magnitude": "How large are the weights besides zero, on a scale that shows the small ones?",
    "cumulative": "What share of the weights is below a given magnitude?",
    "difference": "Where on the axis did weights come from, and where did they go?",
    "channels": "Are there outlier channels, and have they as many zeros as the others?",
    "matrix": "Where in the matrix are the large weights, and where did they change?",
    "joint": "What became of the weights, each by what it was in the dense tensor?",
    "spectrum": "How many directions carry the weights, and how heavy is the tail?",
    "story": "How does the distribution change from step to step?",
}
NONE_CHOSEN = "Choose a stage to see the weights at that stage."
NOT_YET = "This tensor has not reached any of the chosen stages."
ONE_STAGE = "Choose two stages: the first is drawn above, the last below."
NO_BASE = "Choose a stage besides Dense to see its difference to Dense."
NO_EMPTY = "A log axis leaves out bins without weights."
NOT_STORED = "This run has stored no {} of this tensor; runs started from now on do."
NOT_SAVED = (
    "The weights themselves are not on this machine any more: neither the model nor what the run "
    "saved. Choose the whole matrix."
)
CUTOFF = "Dotted: magnitude threshold at the same sparsity."
FROM_ZEROS = "A line begins at the share of exact zeros."


def tensor_chart(view: TensorView, at: str = "") -> Chart:
    """The chosen view of the tensor; the steps begin at the stage `at`."""
    name = view.selection.view
    chart = _steps(view, at) if name == "story" else VIEWS[name](view)
    return replace(
        chart, question=QUESTIONS[name], theory=OF_TENSOR[name], name=f"{file_name(view)}-{name}"
    )


def file_name(view: TensorView) -> str:
    """The beginning of the names of the tensor's files."""
    against = f"-{view.other.job.run}" if view.other else ""
    return f"{view.weights.job.run}{against}-{view.selection.tensor}"


def _chart(
    view: TensorView, figure: go.Figure | str, series: Sequence[Series], *notes: str
) -> Chart:
    """A chart of histograms."""
    frame = bins_frame(on_shared_bins(series))
    note = _joined(*notes, _cutoff_note(series), view.caveats())
    return Chart(figure, frame, note, headline=of_zeros([(s.label, s.zero_share) for s in series]))


def _joined(*notes: str) -> str:
    return " ".join(filter(None, notes))


def _cutoff_note(series: Sequence[Series]) -> str:
    """In words: what the dotted lines are."""
    return CUTOFF if cutoffs(series) else ""


def _missing(view: TensorView, what: str = "") -> Chart:
    """Why there is no chart: `what` was not stored, or else no stage can be drawn."""
    nothing = NOT_YET if view.selection.show else NONE_CHOSEN
    return Chart(NOT_STORED.format(what) if what else nothing, note=view.caveats())


def _overlay(view: TensorView) -> Chart:
    series = view.series()
    if not series:
        return _missing(view)
    log, drawn = view.selection.y == "log", on_shared_bins(series)
    notes = series_note(drawn, whole=log), NO_EMPTY if log else cut_off_peaks(drawn)
    return _chart(view, overlay(series, log_y=log), series, *notes)


def _mirror(view: TensorView) -> Chart:
    own = view.own_stages()
    if not own:
        return _missing(view)
    last = own[-1]
    if view.other is not None:
        twin = view.counterpart(last)
        if twin not in view.other_snapshots:
            return Chart(view.caveats())
        pair = [view.one(last), view.one(twin, other_run=True)]
    elif len(own) > 1:
        pair = [view.one(own[0]), view.one(last)]
    else:
        return Chart(ONE_STAGE)
    drawn = on_shared_bins(pair)
    return _chart(view, mirror(*pair), pair, series_note(drawn), cut_off_peaks(drawn))


def _difference(view: TensorView) -> Chart:
    own = view.own_stages()
    if not own:
        return _missing(view)
    pairs = _pairs(view, own)
    if not pairs:
        return Chart(view.caveats() if view.other else NO_BASE)
    bases = {base.label: base for _, base in pairs}
    series = [*(bases | {s.label: s for s, _ in pairs}).values()]  # each once, bases first
    first = on_shared_bins([*chain(*pairs)])[:1]
    return _chart(view, difference(pairs), series, series_note(first), difference_note(pairs))


def _pairs(view: TensorView, stages: Sequence[str]) -> list[tuple[Series, Series]]:
    """What is looked at, and what is subtracted: the other run, or the dense tensor."""
    if view.other is not None:
        twins = {s: view.counterpart(s) for s in stages}
        both = {s: twin for s, twin in twins.items() if twin in view.other_snapshots}
        return [(view.one(s), view.one(twin, other_run=True)) for s, twin in both.items()]
    if DENSE not in view.snapshots:
        return []
    return [(view.one(s), view.one(DENSE)) for s in stages if s != DENSE]


def _magnitude(view: TensorView) -> Chart:
    log = view.selection.y == "log"
    return _magnitudes(view, partial(magnitude_chart, log_y=log), NO_EMPTY if log else "")


def _cumulative(view: TensorView) -> Chart:
    return _magnitudes(view, cumulative_chart, FROM_ZEROS)


def _magnitudes(view: TensorView, plot: Callable[[Sequence[Series]], Chart], note: str) -> Chart:
    """A chart over the |w| axis."""
    series = view.series(magnitudes=True)
    drawn = [s for s in series if s.magnitudes is not None]
    if not drawn:
        return _missing(view, "magnitudes" if series else "")
    chart = plot(drawn)
    return replace(chart, note=_joined(chart.note, note, _cutoff_note(drawn), view.caveats()))


def _channels(view: TensorView) -> Chart:
    selection = view.selection
    drawn = _channels_of(view, selection.measure)
    if not drawn:
        return _missing(view, "channels" if view.series() else "")
    chart = channels_chart(
        drawn, [c for c in _channels_of(view, "zeros") if c.stage != DENSE], side=selection.side,
        measure=selection.measure, by_size=selection.order == "size", log_y=selection.y == "log",
    )  # fmt: skip
    return replace(chart, note=_joined(chart.note, view.caveats()))


def _channels_of(view: TensorView, measure: str) -> list[Channels]:
    """One figure of all channels at every stage drawn, in both runs."""
    name = channel_profile(view.selection.side, measure)
    scale = 100.0 if measure == "zeros" else 1.0
    drawn = []
    for run, other_run in ((view.weights, False), (view.other, True)):
        profiles = view.profiles(run, name)
        snapshots = view.other_snapshots if other_run else view.snapshots
        for stage in view.drawn_stages(other_run):
            if stage in profiles and stage in snapshots:
                one = view.one(stage, other_run=other_run)
                values = scale * profiles[stage].values
                drawn.append(Channels(one.label, one.stroke, stage, values))
    return [c for c in drawn if len(c.values) == len(drawn[0].values)]


def _steps(view: TensorView, at: str) -> Chart:
    """The stages a tensor goes through, without the side ways."""
    labels = view.weights.labels
    series = [replace(view.one(s), label=labels[s]) for s in main_stages([*view.snapshots])]
    drawn = on_shared_bins(series)
    note = _joined(series_note(drawn), cut_off_peaks(drawn), "Dotted: the first step.")
    figure = stage_steps_figure(series, [shape_in_words(s) for s in series], at)
    scrub = figure.layout.meta["scrub"]
    return Chart(figure, bins_frame(drawn), note, headline=scrub["stops"][scrub["at"]]["title"])


def _single_weights(view: TensorView) -> Chart:
    """The saved weights around a place."""
    output, input = map(int, view.selection.spot.split(","))
    images = [
        MatrixImage(
            view.weights.labels[stage], values, values.shape, (region.rows[0], region.columns[0])
        )
        for stage, region, values in view.saved_weights(output, input)
    ]
    if not images:
        return Chart(NOT_SAVED)
    return _drawn(view, images, "weight")


def _drawn(view: TensorView, images: Sequence[MatrixImage], figure: str) -> Chart:
    """As images, or the last of them as a landscape."""
    chart = matrix_chart(images, figure)
    if view.selection.look == "surface":
        chart = replace(chart, figure=matrix_surface(images[-1], figure))
    return replace(chart, note=_joined(chart.note, view.caveats()))


def _matrix(view: TensorView) -> Chart:
    if view.selection.spot:
        return _single_weights(view)
    cells, own = view.selection.cells, view.own_stages()
    images = [*_images(view, cells, False), *_images(view, cells, True)]
    images = [image for image in images if image.shape == images[0].shape]
    if not images:
        if cells == "change" and own == [DENSE]:
            return Chart(NO_BASE)
        return _missing(view, "maps" if own else "")
    return _drawn(view, images, cells)


def _images(view: TensorView, cells: str, other_run: bool) -> Iterator[MatrixImage]:
    """The matrix at the chosen stages of the run, or of the other."""
    run = view.other if other_run else view.weights
    rows, columns = (
        view.profiles(run, channel_profile(side, "norm")) for side in ("row", "column")
    )
    stored = view.profiles(run, map_profile(cells))
    scale = 100.0 if cells == "zeros" else 1.0
    for stage in view.drawn_stages(other_run):
        if stage in stored:
            shape = len(rows[stage].values), len(columns[stage].values)
            yield MatrixImage(view.label(stage, other_run), scale * stored[stage].values, shape)


def _joint(view: TensorView) -> Chart:
    """Of the last of the chosen stages that is not dense; of two runs beside each other."""
    own = [stage for stage in view.own_stages() if stage != DENSE]
    if not own:
        return Chart(NO_BASE) if view.own_stages() else _missing(view)
    drawn = []
    for run, other_run in ((view.weights, False), (view.other, True)):
        stored = view.profiles(run, JOINT)
        stage = view.counterpart(own[-1]) if other_run else own[-1]
        if stage in stored:
            drawn.append(JointCounts(stored[stage].values, view.one(stage, other_run=other_run)))
    if not drawn:
        return _missing(view, "joint histogram")
    chart = joint_chart(drawn, view.weights.labels[DENSE])
    return replace(chart, note=_joined(chart.note, view.caveats()))


def _spectrum(view: TensorView) -> Chart:
    drawn = []
    for run, other_run in ((view.weights, False), (view.other, True)):
        stored = view.profiles(run, SINGULAR_VALUES)
        snapshots = view.other_snapshots if other_run else view.snapshots
        drawn += [
            Spectrum(view.one(stage, other_run=other_run), stored[stage].values)
            for stage in view.drawn_stages(other_run)
            if stage in stored and stage in snapshots
        ]
    if not drawn:
        return _missing(view, "spectrum" if view.series() else "")
    chart = spectrum_chart(drawn)
    return replace(chart, note=_joined(chart.note, view.caveats()))


VIEWS: dict[str, Callable[[TensorView], Chart]] = {
    "overlay": _overlay,
    "mirror": _mirror,
    "magnitude": _magnitude,
    "cumulative": _cumulative,
    "difference": _difference,
    "channels": _channels,
    "matrix": _matrix,
    "joint": _joint,
    "spectrum": _spectrum,
}
