"""What the browser is told of a model, for which no process has to hold it: its layers and the
knobs there are, and the profile of a run, from which it predicts any state."""

from math import exp
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from backend.errors import NotFoundError, SlimscopeError
from backend.live.address import AT_ONCE
from backend.pruning.pruners import DECLARED_PRUNERS
from backend.quantization import DECLARED_QUANTIZERS
from backend.quantization.config import MAX_BITS, MIN_BITS
from backend.queue.actor import Actor
from backend.queue.rate_limit import count_preview
from backend.sensitivity.budget import Mix
from backend.sensitivity.profile import Format, SensitivityProfile
from backend.statistics.tensors import SENSITIVITY
from backend.store import queries
from backend.store.states import State
from backend.store.tables import Job
from jobs.fields.models import resolve_model
from jobs.metrics import HELDOUT_LOSS
from jobs.profile.kind import QUANTIZER, ProfileJob
from jobs.profile.profiles import Method
from ui.api_errors import error_response
from ui.charts.heatmap import in_order
from ui.live_api import live_parts
from ui.runs.choices import models
from ui.runs.sensitivity.fronts import METHODS, fronts_of
from ui.runs.sensitivity.measured import measured_runs, quantized_bytes, queued_runs
from ui.runs.sensitivity.profiles import profile_at
from ui.security.auth import current_user
from ui.widgets.explorer import cached_by
from ui.widgets.packed import PackedArrays

START, PROFILE = "/slimscope/workbench/start", "/slimscope/workbench/profile"
WIDTHS, GROUPS = (2, 3, 4, 5, 6, 8), (32, 64, 128)
PATTERNS = ("1:4", "2:4", "4:8")
DENSE_CODE = 255


def profiles_of(model: str) -> list[Job]:
    """Runs that have profiled a model, finished ones first, then the newest."""
    jobs = [j for j in queries.runs_with_profile(SENSITIVITY) if model in ("", j.config["model"])]
    return sorted(jobs, key=lambda job: job.state != State.SUCCEEDED)


def start(request: Request) -> Response:
    """Answer to `?model=smollm2-135m`; without it, of the model that was profiled last."""
    try:
        actor = current_user(request)
        if actor.role != "host":
            count_preview(actor)  # a model may be looked up on the Hub
        return JSONResponse(_start(request.query_params.get("model", ""), actor))
    except SlimscopeError as error:
        return error_response(error)


def _start(model: str, actor: Actor) -> dict[str, Any]:
    found = profiles_of(model)
    model = model or (str(found[0].config["model"]) if found else models()[0][1])
    facts = resolve_model(model, reads=False).facts
    facts.require_compressible()
    layers = (*facts.linears, *facts.embeddings)
    profiled = {str(job.config["model"]) for job in profiles_of("")}
    offered = [(title, name, name in profiled) for title, name in models()]
    run = found[0] if found else None
    pruner = run and run.config.get("pruner", ProfileJob.model_fields["pruner"].default)
    rest = 2 * (facts.parameters - sum(x.weights for x in layers))
    runs = measured_runs(model, lambda row: quantized_bytes(row, layers, rest))
    return {
        "model": model,
        "title": facts.title,
        "models": offered,
        "layers": [(x.name, x.block, x.module, x.rows, x.columns) for x in layers],
        "modules": in_order([*dict.fromkeys(x.module for x in facts.linears)]),
        "rest": rest,
        "runs": [(one.run, one.label, one.x, one.ratio) for one in runs],
        "queued": queued_runs(model),
        "widths": [bits for bits in WIDTHS if MIN_BITS <= bits <= MAX_BITS],
        "groups": GROUPS,
        "patterns": PATTERNS,
        "pruners": [_method(name) for name in DECLARED_PRUNERS],
        "quantizers": [_method(name) for name in DECLARED_QUANTIZERS],
        "made": AT_ONCE | ({"pruner": pruner, "quantizer": QUANTIZER} if run else {}),
        "profile": run.run if run else "",
        "partial": run is not None and run.state != State.SUCCEEDED,
        "perplexity": _perplexity(run),
        "live": live_parts(facts, model, actor),
    }


def _method(name: str) -> dict[str, Any]:
    return {"name": name, "label": name, "instant": name in AT_ONCE.values()}


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
    for method, front in fronts.items():
        arrays |= _packed_front(known, method, front.mixes[METHODS[method]])
    header = {
        "run": run,
        "model": known.model,
        "formats": [*map(str, formats)],
        "fronts": [*fronts],
        "layers": [(x.name, x.block, x.module, x.rows, x.columns) for x in layers],
    }
    return PackedArrays.of(header, arrays)


def _packed_front(
    known: SensitivityProfile, method: Method, mixes: list[Mix]
) -> dict[str, np.ndarray]:
    code = {form: at for at, form in enumerate(known.formats)} | {Format(): DENSE_CODE}
    chosen = [[code[mix.formats[x.name]] for x in known.layers] for mix in mixes]
    return {
        f"{method}_formats": np.array(chosen, "<u1"),
        f"{method}_bytes": np.array([mix.nbytes for mix in mixes], "<f4"),
        f"{method}_loss": np.array([mix.loss for mix in mixes], "<f4"),
    }
