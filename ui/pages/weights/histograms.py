"""Binary data for the scripts of the page: all histograms and statistics of a run, loaded once, and
on demand some profiles of a tensor, or the saved weights of a region.

Arrays of a run (`ui.widgets.packed`):

    counts    [tensors, stages, bins]       weights in each bin, from `edges`
    tails     [tensors, stages, 4]          all weights, exact zeros, weights below and above
    edges     [tensors, 2]                  first and last bin edge of a tensor, at all stages
    values    [statistics, tensors, stages] as stored, NaN where not measured
"""

import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from backend.errors import ModelError
from backend.statistics.regions import Region, read_region
from backend.statistics.tensors import (
    BINS,
    JOINT,
    MAPS,
    MEASURES,
    RELATIVE_ERROR,
    SIDES,
    SINGULAR_VALUES,
    channel_profile,
    map_profile,
)
from backend.store import queries, tensors
from jobs.kind import kinds
from jobs.metrics import PERPLEXITY
from jobs.wording import distinguishable
from ui.charts.heatmap import STATISTICS, available, in_order, with_largest
from ui.format import href
from ui.pages.weights.charts import WeightsSelection, main_stages
from ui.pages.weights.groups import packed_groups
from ui.runs.results import DENSE, real_models_first
from ui.runs.weights import RunWeights, kept_stage, run_choices, saved_folders, weights_of
from ui.theme import declared, stage_style
from ui.widgets.explorer import RunReader, empty_state
from ui.widgets.packed import PackedArrays

PATH = "/slimscope/weights"
MAX_BYTES = 16_000_000  # maximum size of the histograms; otherwise bins are merged
MIN_BINS = 16
MOST = 0.5  # share of the layers
DRAWN_ONLY = ("cutoff",)  # not listed: a place on an axis
FROM_DENSE = (RELATIVE_ERROR, "moved", "distance")  # statistics of the difference from dense
PROFILES = {  # profiles that are sent by name
    *(channel_profile(side, measure) for side in SIDES for measure in MEASURES),
    *map(map_profile, MAPS),
    JOINT,
    SINGULAR_VALUES,
}
TRADED = (
    "These errors are of each layer alone, on dense inputs; training trades them for the loss of "
    "the whole model."
)
NO_RUN = "No run has stored weight statistics yet. Start one, or inspect a model below."


# all histograms of a run --------------------------------------------------------------------------


def packed_run(run: str) -> PackedArrays | None:
    """The arrays of a run with statistics; None if they are too large."""
    weights = weights_of(run)
    assert weights is not None, "the reader asks only about runs with statistics"
    bins = BINS
    while 4 * len(weights.tensors) * len(weights.stages) * bins > MAX_BYTES:
        bins //= 2
    if bins < MIN_BINS:
        return None
    place = {name: n for n, name in enumerate(weights.tensors)}
    stages = {stage: n for n, stage in enumerate(weights.stages)}
    counts = np.zeros((len(place), len(stages), bins), "<u4")
    tails = np.zeros((len(place), len(stages), 4), "<f8")
    edges = np.full((len(place), 2), np.nan)
    for one in tensors.run_snapshots(weights.job.id):  # later steps replace earlier ones
        if one.tensor not in place or one.stage not in stages or len(one.counts) % bins:
            continue
        t, s = place[one.tensor], stages[one.stage]
        if np.isnan(edges[t, 0]):
            edges[t] = one.lo, one.hi
        if (one.lo, one.hi) == tuple(edges[t]):
            counts[t, s] = one.counts.reshape(bins, -1).sum(1)
            tails[t, s] = one.n, one.zeros, one.below, one.above
    if counts.max(initial=0) < 2**16:
        counts = counts.astype("<u2")
    arrays = {"counts": counts, "tails": tails, "edges": edges, "values": _values(weights)}
    return PackedArrays.of(_header(weights) | {"bins": bins, "merged": BINS // bins}, arrays)


def _mark(run: str) -> tuple[Any, ...] | None:
    """Return a value that changes with the binary data: statistics, results, kept stage and list of
    runs."""
    mark = queries.weights_mark(run)
    if mark is None:
        return None
    choices = run_choices(queries.runs_with_weights(), run)
    return (*mark, queries.job(run).kept_stage, tuple(choices))


packed_of = RunReader(packed_run, _mark, size=4)


def _values(weights: RunWeights) -> np.ndarray:
    """Statistics [statistics, tensors, stages]; those that are only drawn come last."""
    table = with_largest(weights.table)
    names = [*available(table), *(name for name in DRAWN_ONLY if name in table)]
    cells = pd.MultiIndex.from_product([[*weights.tensors], weights.stages])
    rows = table.set_index(["tensor", "stage"])[names].reindex(cells).to_numpy("<f8")
    shape = len(names), len(weights.tensors), len(weights.stages)
    values = np.ascontiguousarray(rows.T).reshape(shape)
    if DENSE in weights.stages:  # the reference does not differ from itself
        place = weights.stages.index(DENSE)
        for k, name in enumerate(names):
            if name in FROM_DENSE:
                values[k, :, place] = np.nan_to_num(values[k, :, place], nan=0.0)
    return values


def _header(weights: RunWeights) -> dict[str, Any]:
    job, settled = weights.job, WeightsSelection().settled(weights)
    jobs = queries.runs_with_weights()
    models = {each.run: str(each.config.get("model", "")) for each in (*jobs, job)}
    perplexity = {
        r.stage: r.value
        for r in queries.results([job.id])
        if r.metric == PERPLEXITY and np.isfinite(r.value)
    }
    stages = [
        {
            "name": s,
            "label": weights.labels[s],
            "short": declared(s).short or weights.labels[s],
            "main": declared(s).main,
            "pruned": declared(s).pruned,
            "trained": declared(s).trained,
            "color": stage_style(s).color,
            "dash": stage_style(s).dash,
            "perplexity": perplexity.get(s),
        }
        for s in weights.stages
    ]
    effect = weights.effect
    statistics = [
        {
            "name": name,
            "label": STATISTICS[name].label,
            "question": STATISTICS[name].question,
            "percent": STATISTICS[name].percent,
        }
        for name in available(weights.table)
    ]
    return {
        "run": job.run,
        "model": weights.model,
        "kept": kept_stage(weights, weights.stages),
        "runs": [[label, run, models.get(run, "")] for label, run in run_choices(jobs, job.run)],
        "stages": stages,
        "effect": effect | {"note": disagreement(weights, perplexity, effect)},
        "modules": in_order([*{module: None for _, module in weights.places.values()}]),
        "tensors": [
            [name, label, *weights.places[name]] for name, label in weights.tensors.items()
        ],
        "statistics": statistics,
        "unlisted": [name for name in DRAWN_ONLY if name in weights.table],
        "defaults": {"stage": settled.stage, "stat": settled.stat, "tensor": settled.tensor},
    }


def disagreement(
    weights: RunWeights, perplexity: Mapping[str, float], effect: Mapping[str, str]
) -> str:
    """A sentence if the perplexity and the output errors of most layers do not change in the same
    direction; else empty."""
    stage = effect["after"]
    if RELATIVE_ERROR not in weights.table:
        return ""
    errors = weights.table.pivot(index="tensor", columns="stage", values=RELATIVE_ERROR)
    for other in (effect["rival"], effect["before"]):
        if not {stage, other} <= {*errors.columns} & perplexity.keys():
            continue
        own, theirs = perplexity[stage], perplexity[other]
        pairs = errors[[stage, other]].dropna()
        more = float((pairs[stage] > pairs[other]).mean()) if len(pairs) else np.nan
        if own < theirs and more > MOST and declared(stage).trained:
            return TRADED
        if (own < theirs and more > MOST) or (own > theirs and more < 1 - MOST):
            way = "lower" if own < theirs else "higher"
            figures = " against ".join(distinguishable([own, theirs]))
            return f"Yet perplexity is {way}, {figures}: errors of layers add up or cancel."
    return ""


# one tensor ---------------------------------------------------------------------------------------


def packed_profiles(weights: RunWeights, tensor: str, query: Mapping[str, str]) -> PackedArrays:
    """Profiles of a tensor by block, stage and name, such as "3/dense/row_norm"; with `spot`,
    weights by stage. Unknown tensors and names are empty."""
    if tensor not in weights.tensors:
        return PackedArrays.of({}, {})
    run = weights.job.id
    if spot := re.fullmatch(r"(\d{1,6}),(\d{1,6})", query.get("spot", "")):  # output, input
        outputs, inputs = (
            next((len(p.values) for p in tensors.profiles(run, tensor, name)), 0)
            for name in (channel_profile(side, "norm") for side in SIDES)
        )
        output, input = int(spot[1]), int(spot[2])
        if output >= outputs or input >= inputs:
            return PackedArrays.of({}, {})
        region, arrays = Region.around(output, input, (outputs, inputs), 48), {}
        for stage, folder in saved_folders(weights.job).items():
            with suppress(ModelError):
                values = read_region(folder, tensor, region)
                if values is not None and stage in weights.labels:
                    arrays[stage] = values.astype("<f4")
        return PackedArrays.of({"first": [region.rows[0], region.columns[0]]}, arrays)
    names = PROFILES & {*query.get("names", "").split(",")}
    found = [p for name in sorted(names) for p in tensors.profiles(run, tensor, name)]
    return PackedArrays.of({}, {f"{p.block}/{p.stage}/{p.name}": p.values for p in found})


# the answer ---------------------------------------------------------------------------------------


def histograms(request: Request) -> Response:
    """Answer `?run=sds-0042`, by default for the run of `_opened`, and
    `&tensor=NAME&names=LIST`: with a binary, or with the reason in JSON."""
    query = request.query_params
    run = query.get("run", "") or _opened()
    if (tensor := query.get("tensor")) is not None and (weights := weights_of(run)):
        if "groups" in query:
            return packed_groups(weights, tensor, query["groups"]).answer(request)
        return packed_profiles(weights, tensor, query).answer(request)
    mark = _mark(run) if run else None
    if mark is None or not mark[1]:
        later = "They appear here block by block."
        empty = empty_state(run, NO_RUN, "stored no weight statistics", later, href("new-run"))
        return _nothing(empty, 404 if run and mark is None else 200)
    if (found := packed_of(run)) is not None:
        return found.answer(request)
    weights = weights_of(run)
    matrices, stages = (len(weights.tensors), len(weights.stages)) if weights else (0, 0)
    why = (
        f"The histograms of {matrices} matrices at {stages} stages are too large for a page: at "
        f"most {MAX_BYTES // 1_000_000} MB are sent. Statistics: slimscope results --of tensors."
    )
    return _nothing(Markup.escape(why), 413)


def _opened() -> str:
    """The newest run; among the examples, the run of the first kind with the most main stages, as
    on *Home*."""
    runs = [*real_models_first(queries.runs_with_weights())]
    if not runs or runs[0].id > 0:
        return runs[0].run if runs else ""
    found = (weights_of(job.run) for job in runs if job.kind == next(iter(kinds())))
    shown = max(filter(None, found), key=lambda x: len(main_stages(x.stages)), default=None)
    return shown.job.run if shown else runs[0].run


def _nothing(why: Markup, status: int) -> Response:
    return JSONResponse({"what": why.striptags(), "html": why}, status)
