"""What the browser is told of a model, for which no process has to hold it: its layers and the
knobs there are; the profile of a run, from which it predicts any state; and the dense weights of
one layer, from which it makes any format at once: rows of the matrix as they lie in the model's
files, and the energies of its inputs where a run has stored them."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from math import exp
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from backend.errors import ConfigError, ModelError, NotFoundError, SlimscopeError
from backend.live.address import INSTANT_METHODS, state_at
from backend.models.families.stored import LinearShape
from backend.models.sources.catalog import local_folder
from backend.pruning.pattern import Pattern
from backend.pruning.pruners import DECLARED_PRUNERS
from backend.quantization import DECLARED_QUANTIZERS
from backend.quantization.config import MAX_BITS, MIN_BITS, Width
from backend.queue import gate
from backend.queue.actor import Actor
from backend.sensitivity.profile import DENSE_BITS, Format
from backend.statistics.regions import Region, read_region
from backend.statistics.tensors import BINS, INPUT_ENERGY, QUANTILES, SENSITIVITY, histogram_edge
from backend.store import queries, tensors
from backend.store.states import State
from backend.store.tables import Job
from jobs.fields.models import is_run, resolve_model
from jobs.metrics import HELDOUT_LOSS
from jobs.profile.kind import QUANTIZER, ProfileJob
from ui.api_errors import error_response
from ui.charts.heatmap import in_order
from ui.format import NBSP
from ui.live_api import live_parts
from ui.runs.choices import models
from ui.runs.profiles import (
    METHOD_BUDGETS,
    fronts_of,
    measured_runs,
    profile_at,
    quantized_bytes,
    queued_runs,
)
from ui.runs.weights import DENSE, layer_label
from ui.security.auth import current_user
from ui.theme import BLUE, DARK, LIGHT, VERMILLION
from ui.widgets.explorer import cached_by
from ui.widgets.packed import PackedArrays

START, PROFILE = "/slimscope/workbench/start", "/slimscope/workbench/profile"
WEIGHTS = "/slimscope/workbench/weights"
MOST = 1_000_000  # weights that are sent; of a larger matrix, rows at equal distances
ELSEWHERE = ("The files of this model are not here yet.", "", "They come with its first run.")
WIDTHS, GROUPS = (2, 3, 4, 5, 6, 8), (32, 64, 128)
PATTERNS, MOST_PERCENT = ("1:4", "2:4", "4:8"), 90
BITS = range(MIN_BITS, MAX_BITS + 1)
OFFERED = (  # what the knobs reach; formats of a pattern and a width are made of these
    *map(Format.parse, PATTERNS),
    *(Format.parse(f"{percent}%") for percent in range(1, MOST_PERCENT + 1)),
    *(Format(Width(bits, group)) for group in (0, *GROUPS) for bits in BITS),
)
NO_PATTERN, NO_WIDTH = Pattern(0, 0, 0.0), Width(DENSE_BITS)
FRONTS = {"quantized": ("by bits", BLUE), "pruned": ("by sparsity", VERMILLION)}
DENSE_CODE = 255


def profiles_of(model: str) -> list[Job]:
    """Runs that have profiled a model, finished ones first, then the newest."""
    jobs = [j for j in queries.runs_with_profile(SENSITIVITY) if model in ("", j.config["model"])]
    return sorted(jobs, key=lambda job: job.state != State.SUCCEEDED)


def start(request: Request) -> Response:
    """Answer to `?model=smollm2-135m&state=~magnitude~rtn~50p_dense~0x210_1`; without a model, of
    the one that was profiled last, without a state, of none."""
    try:
        actor, query = current_user(request), request.query_params
        if actor.role != "host":
            gate.previews.spend(actor)  # a model may be looked up on the Hub
        return JSONResponse(_start(query.get("model", ""), query.get("state", ""), actor))
    except SlimscopeError as error:
        return error_response(error)


def _start(model: str, address: str, actor: Actor) -> dict[str, Any]:
    found = profiles_of(model)
    model = model or (str(found[0].config["model"]) if found else models()[0][1])
    facts = resolve_model(model, reads=False).facts
    facts.require_compressible()
    layers = (*facts.linears, *facts.embeddings)
    profiled = {str(job.config["model"]) for job in profiles_of("")}
    run = found[0] if found else None
    pruner = run and run.config.get("pruner", ProfileJob.model_fields["pruner"].default)
    rest = 2 * (facts.parameters - sum(x.weights for x in layers))
    return {
        "model": model,
        "title": facts.title,
        "models": [(title, name, name in profiled) for title, name in models()],
        "layers": [
            {
                "name": x.name,
                "block": x.block,
                "module": x.module,
                "rows": x.rows,
                "columns": x.columns,
                "label": layer_label(x.block, x.module),
            }
            for x in layers
        ],
        "modules": in_order([*dict.fromkeys(x.module for x in facts.linears)]),
        "rest": rest,
        "runs": [
            (one.run, one.label, one.x, one.ratio)
            for one in measured_runs(model, lambda row: quantized_bytes(row, layers, rest))
        ],
        "queued": [*_queued(model, layers, rest)],
        "widths": WIDTHS,
        "groups": GROUPS,
        "patterns": PATTERNS,
        "parts": _parts(OFFERED, layers),
        "colors": {"dense": LIGHT.muted, "unchanged": DARK.muted},
        "pruners": [*DECLARED_PRUNERS],
        "quantizers": [*DECLARED_QUANTIZERS],
        "instant": [*INSTANT_METHODS.values()],
        "made": INSTANT_METHODS | ({"pruner": pruner, "quantizer": QUANTIZER} if run else {}),
        "profile": run.run if run else "",
        "partial": run is not None and run.state != State.SUCCEEDED,
        "perplexity": _perplexity(run),
        "live": live_parts(facts, model, actor),
        "state": _state(address, layers) if address else None,
    }


def _state(address: str, layers: Sequence[LinearShape]) -> dict[str, Any]:
    """Methods, the formats of all layers as names of parts, and these parts; or why there is no
    such state."""
    try:
        state = state_at(address, layers)
    except ConfigError as error:
        return {"refused": f"{error.what} {error.why}"}
    formats = state.formats.values()
    return {
        "identity": address.partition("~")[0],
        "pruner": state.pruner,
        "quantizer": state.quantizer,
        "formats": [*map(_names, formats)],
        "parts": _parts(formats, layers),
    }


def _queued(model: str, layers: Sequence[LinearShape], rest: float) -> Iterator[dict[str, Any]]:
    """Runs that were queued from states, with the bytes of those; not those of another version of
    the model."""
    for run in queued_runs(model):
        with suppress(ConfigError):
            formats = state_at(run["state"], layers).formats
            nbytes = sum(formats[x.name].nbytes(x.rows, x.columns) for x in layers)
            yield run | {"nbytes": rest + nbytes}


def _names(form: Format) -> tuple[str, str]:
    return str(form.pattern or ""), str(form.width or "")


def _parts(formats: Iterable[Format], layers: Iterable[LinearShape]) -> dict[str, dict[str, Any]]:
    """Patterns and widths by name, of which the page puts formats together. `extra`: bits of masks,
    indices and scales that a weight takes in rows of one input; `misfits`: numbers of inputs of
    these layers that cannot be stored so."""
    columns, parts = {x.columns for x in layers}, dict[str, dict[str, Any]]()
    for form in formats:
        for part in (Format(pattern=form.pattern), Format(form.width)):
            pattern, width = part.pattern or NO_PATTERN, part.width or NO_WIDTH
            short = Format(part.width and Width(width.bits), part.pattern)
            parts[str(part)] = {
                "label": part.label.replace("%", f"{NBSP}%"),
                "short": short.label.replace("%", f"{NBSP}%"),
                "keep": pattern.keep,
                "of": pattern.group,
                "drop": pattern.drop,
                "bits": width.bits,
                "group": width.group,
                "extra": part.bits_per_weight(1) - (1 - pattern.drop) * width.bits,
                "misfits": [each for each in columns if not part.fits(each)],
            }
    return parts


def _perplexity(run: Job | None) -> float | None:
    """Of the dense model on the text that was held out of a profile."""
    found = queries.results([run.id]) if run else []
    losses = [each.value for each in found if each.metric == HELDOUT_LOSS]
    return exp(losses[-1]) if losses else None


# the profile of a run -----------------------------------------------------------------------------


def profile(request: Request) -> Response:
    """Answer to `?run=profile-0004`: a binary with the figures of each layer, and the fronts."""
    run = request.query_params.get("run", "")
    found = packed_profile(run)
    if found is None:
        return error_response(NotFoundError(f"{run[:40]!r} is no profile."), 404)
    return found.answer(request)


@cached_by(queries.profiles_mark)
def packed_profile(run: str) -> PackedArrays | None:
    """error and predicted [layers, formats], NaN where there is none; of each front the format of
    every layer [points, layers], 255: dense, its bytes and its loss [points]."""
    known = profile_at(run)
    if known is None:
        return None
    layers, formats = known.layers, known.formats
    predicted = np.where(np.isfinite(known.predicted), known.predicted, np.nan)
    arrays = {"error": known.figure("error").astype("<f4"), "predicted": predicted.astype("<f4")}
    fronts = fronts_of(run) or {}
    code = {form: at for at, form in enumerate(formats)} | {Format(): DENSE_CODE}
    for method, front in fronts.items():
        mixes = front.mixes[METHOD_BUDGETS[method]]
        chosen = [[code[mix.formats[x.name]] for x in layers] for mix in mixes]
        arrays |= {
            f"{method}_formats": np.array(chosen, "<u1"),
            f"{method}_bytes": np.array([mix.nbytes for mix in mixes], "<f4"),
            f"{method}_loss": np.array([mix.loss for mix in mixes], "<f4"),
        }
    widths = [Format(Width(bits, x.width.group)) for x in formats if x.width for bits in BITS]
    header = {
        "run": run,
        "formats": [*map(_names, formats)],
        "parts": _parts([*formats, *widths], layers),
        "fronts": [(method, *FRONTS[method]) for method in fronts],
        "layers": [x.name for x in layers],
    }
    return PackedArrays.of(header, arrays)


# the weights of a layer ---------------------------------------------------------------------------


def weights(request: Request) -> Response:
    """Answer to `?model=smollm2-135m&name=model.layers.0.mlp.up_proj`: arrays weights [rows,
    columns] float32, and energy [columns], which may be missing; the header has all rows."""
    query = request.query_params
    try:
        return _packed(query.get("model", ""), query.get("name", "")).answer(request)
    except SlimscopeError as error:
        return error_response(error, 404)


def _packed(model: str, name: str) -> PackedArrays:
    if not is_run(model) and local_folder(model) is None:  # nothing is looked up elsewhere
        raise ModelError(*ELSEWHERE)
    resolved = resolve_model(model, reads=False)
    matrices = (*resolved.facts.linears, *resolved.facts.embeddings)
    shape = next((x for x in matrices if x.name == name), None)
    if shape is None:
        raise NotFoundError(f"{name[:80]!r} is no layer of {model[:80]}.")
    values = _rows(resolved.source, shape)
    arrays = {"weights": values}
    # mean square of the inputs in the dense model, of the newest run that has it
    jobs = [j for j in queries.runs_with_profile(INPUT_ENERGY) if j.config.get("model") == model]
    stored = (x for j in jobs for x in tensors.profiles(j.id, f"{name}.weight", INPUT_ENERGY))
    for found in stored:
        if found.stage == DENSE and len(found.values) == shape.columns:
            arrays["energy"] = found.values.astype("<f4")
            break
    edge = histogram_edge(*map(float, np.quantile(values, (QUANTILES[0], QUANTILES[-1]))))
    return PackedArrays.of({"name": name, "bins": BINS, "edge": edge}, arrays, compress=False)


def _rows(source: str, shape: LinearShape) -> np.ndarray:
    """At most `MOST` weights of a matrix, whole rows of it [rows, columns]."""
    folder, stored = local_folder(source), shape.stored
    if folder is None:
        raise ModelError(*ELSEWHERE)
    step = -(-shape.weights // MOST)
    tensor = stored.names[0] if stored.names else f"{shape.name}.weight"
    rows, columns, steps, found = (0, shape.rows), (0, shape.columns), (step, 1), None
    if stored.transposed:
        rows, columns, steps = columns, rows, (1, step)
    if len(stored.names) < 2 and stored.expert is None:
        found = read_region(folder, tensor, Region(rows, columns), steps)
    if found is None:
        raise ModelError("The weights of this layer are stored together with others, or packed.")
    return np.ascontiguousarray(found.T if stored.transposed else found, "<f4")
