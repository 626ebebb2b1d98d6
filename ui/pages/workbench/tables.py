"""Data of a model for the browser that needs no live model: layers, knobs, runs, the state in a
URL, and the dense weights of one layer, as rows of its matrix, with the energies of its inputs if a
run has stored them. The browser computes all formats from these weights."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from backend.errors import ConfigError, ModelError, NotFoundError, SlimscopeError
from backend.live.address import INSTANT_METHODS, state_at
from backend.models.facts import ModelFacts
from backend.models.families.stored import LinearShape
from backend.models.sources.catalog import local_folder
from backend.pruning.pruners import DECLARED_PRUNERS
from backend.quantization import DECLARED_QUANTIZERS
from backend.queue import gate
from backend.queue.actor import Actor
from backend.statistics.regions import Region, read_region
from backend.statistics.tensors import BINS, INPUT_ENERGY, QUANTILES, histogram_edge
from backend.store import queries, tensors
from backend.store.states import State
from backend.store.tables import Job
from jobs.fields.models import is_run, resolve_model
from jobs.profile.kind import QUANTIZER, ProfileJob
from ui.api_errors import error_response
from ui.charts.formats import SCALE
from ui.charts.heatmap import in_order
from ui.format import size
from ui.live_api import live_parts
from ui.pages.workbench.formats import GROUPS, OFFERED, PATTERNS, WIDTHS, format_parts, names_of
from ui.pages.workbench.profiles import AUTOMATIC, knowledge, landmarks, new_profile, profiles_of
from ui.runs.choices import models
from ui.runs.profiles import state_runs
from ui.runs.results import DENSE
from ui.runs.weights import layer_label
from ui.security.auth import current_user
from ui.templates import fragments
from ui.theme import DARK, LIGHT
from ui.widgets.packed import PackedArrays

HTML = fragments("pages/workbench/page.html")
START, WEIGHTS = "/slimscope/workbench/start", "/slimscope/workbench/weights"
MAX_WEIGHTS = 1_000_000  # of larger matrices, evenly spaced rows are sent
ELSEWHERE = ("The files of this model are not here yet.", "", "They come with its first run.")


def start(request: Request) -> Response:
    """Answer `?model=smollm2-135m&state=~magnitude~rtn~50p_dense~0x210_1`. Without a model, use the
    most recently profiled model, preferably not the toy model."""
    try:
        actor, query = current_user(request), request.query_params
        if actor.role != "host":
            gate.previews.spend(actor)  # the Hub may have to be asked about a model
        return JSONResponse(_start(query.get("model", ""), query.get("state", ""), actor))
    except SlimscopeError as error:
        return error_response(error)


def _start(model: str, address: str, actor: Actor) -> dict[str, Any]:
    profiled = [str(job.config["model"]) for job in profiles_of("")]
    model = model or next((x for x in profiled if x != AUTOMATIC), models()[0][1])
    found = profiles_of(model)
    facts = resolve_model(model, reads=False).facts
    facts.require_compressible()
    layers = (*facts.linears, *facts.embeddings)
    live = live_parts(facts, model, actor)
    return {
        "model": model,
        "title": facts.title,
        "models": [(title, name, name in profiled) for title, name in models()],
        **_layers(facts, layers),
        **_runs(model, layers, _other_bytes(facts, layers)),
        **_profile(found[0] if found else None, model, layers, actor, live),
        "widths": WIDTHS,
        "groups": GROUPS,
        "patterns": PATTERNS,
        "parts": format_parts(OFFERED, layers),
        "colors": {"dense": LIGHT.muted, "unchanged": DARK.muted, "formats": SCALE},
        "pruners": [*DECLARED_PRUNERS],
        "quantizers": [*DECLARED_QUANTIZERS],
        "instant": [*INSTANT_METHODS.values()],
        "live": live,
        "empty": f"No text: {live['why']}"
        if live["why"]
        else f"Write, or change a knob. Loads {facts.title} (up to {size(live['bytes'])}).",
        "state": _state(address, layers) if address else None,
    }


def _other_bytes(facts: ModelFacts, layers: Sequence[LinearShape]) -> int:
    """Bytes of all tensors other than the layers, in 16 bits."""
    return 2 * (facts.parameters - sum(x.weights for x in layers))


def _layers(facts: ModelFacts, layers: Sequence[LinearShape]) -> dict[str, Any]:
    rows = [
        {
            "name": x.name,
            "block": x.block,
            "module": x.module,
            "rows": x.rows,
            "columns": x.columns,
            "label": layer_label(x.block, x.module),
        }
        for x in layers
    ]
    modules = in_order([*dict.fromkeys(x.module for x in facts.linears)])
    return {"layers": rows, "modules": modules, "rest": _other_bytes(facts, layers)}


def _runs(model: str, layers: Sequence[LinearShape], other_bytes: int) -> dict[str, Any]:
    """Runs with the states that they make, and llama.cpp's files of a model."""
    runs = [*state_runs(model, layers, other_bytes)]
    return {"runs": runs, "landmarks": landmarks(model)}


def _profile(
    run: Job | None,
    model: str,
    layers: Sequence[LinearShape],
    actor: Actor,
    live: Mapping[str, Any],
) -> dict[str, Any]:
    """The profile used for predictions, and the offer of a new one if it is missing or outdated."""
    pruner = run and run.config.get("pruner", ProfileJob.model_fields["pruner"].default)
    unknown: dict[str, Any] = {"facts": [], "text": (0, 0), "outdated": ""}
    known = knowledge(run, len(layers)) if run else unknown
    name, partial = run.run if run else "", run is not None and run.state != State.SUCCEEDED
    offer = None if run and not known["outdated"] else new_profile(model, actor)
    return {
        "made": INSTANT_METHODS | ({"pruner": pruner, "quantizer": QUANTIZER} if run else {}),
        "profile": name,
        "partial": partial,
        "text": known["text"],
        "known": HTML.known(name, partial, known["facts"]) if run else "",
        "notice": HTML.missing(name, known, offer, live),
        "offer": offer,
    }


def _state(address: str, layers: Sequence[LinearShape]) -> dict[str, Any]:
    """The methods, the formats of all layers as names of their parts, and these parts; or the
    reason why there is no such state."""
    try:
        state = state_at(address, layers)
    except ConfigError as error:
        return {"refused": f"{error.what} {error.why}"}
    formats = state.formats.values()
    return {
        "identity": address.partition("~")[0],
        "pruner": state.pruner,
        "quantizer": state.quantizer,
        "formats": [*map(names_of, formats)],
        "parts": format_parts(formats, layers),
    }


# the weights of a layer ---------------------------------------------------------------------------


def weights(request: Request) -> Response:
    """Answer `?model=smollm2-135m&name=model.layers.0.mlp.up_proj` with the arrays weights [rows,
    columns] float32 and, if stored, energy [columns]; the header contains the total number of
    rows."""
    query = request.query_params
    try:
        return _packed(query.get("model", ""), query.get("name", "")).answer(request)
    except SlimscopeError as error:
        return error_response(error, 404)


def _packed(model: str, name: str) -> PackedArrays:
    if not is_run(model) and local_folder(model) is None:  # only local files are used
        raise ModelError(*ELSEWHERE)
    resolved = resolve_model(model, reads=False)
    matrices = (*resolved.facts.linears, *resolved.facts.embeddings)
    shape = next((x for x in matrices if x.name == name), None)
    if shape is None:
        raise NotFoundError(f"{name[:80]!r} is no layer of {model[:80]}.")
    values = _rows(resolved.source, shape)
    arrays = {"weights": values}
    # mean square of the dense model's inputs, from the newest run that recorded it
    jobs = [j for j in queries.runs_with_profile(INPUT_ENERGY) if j.config.get("model") == model]
    stored = (x for j in jobs for x in tensors.profiles(j.id, f"{name}.weight", INPUT_ENERGY))
    for found in stored:
        if found.stage == DENSE and len(found.values) == shape.columns:
            arrays["energy"] = found.values.astype("<f4")
            break
    edge = histogram_edge(*map(float, np.quantile(values, (QUANTILES[0], QUANTILES[-1]))))
    return PackedArrays.of({"name": name, "bins": BINS, "edge": edge}, arrays, compress=False)


def _rows(source: str, shape: LinearShape) -> np.ndarray:
    """At most `MAX_WEIGHTS` weights of a matrix, as whole rows [rows, columns]."""
    folder, stored = local_folder(source), shape.stored
    if folder is None:
        raise ModelError(*ELSEWHERE)
    step = -(-shape.weights // MAX_WEIGHTS)
    tensor = stored.names[0] if stored.names else f"{shape.name}.weight"
    rows, columns, steps, found = (0, shape.rows), (0, shape.columns), (step, 1), None
    if stored.transposed:
        rows, columns, steps = columns, rows, (1, step)
    if len(stored.names) < 2 and stored.expert is None:
        found = read_region(folder, tensor, Region(rows, columns), steps)
    if found is None:
        raise ModelError("The weights of this layer are stored together with others, or packed.")
    return np.ascontiguousarray(found.T if stored.transposed else found, "<f4")
