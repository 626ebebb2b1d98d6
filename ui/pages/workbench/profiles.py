"""Sensitivity profiles for the browser: tables of predictions, the best allocations, the allocation
for a typed budget, and the origin of a profile; and measured llama.cpp files for comparison."""

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from backend.budget import Budget
from backend.errors import ConfigError, NotFoundError, SlimscopeError
from backend.live.address import state_at
from backend.models.families.stored import LinearShape
from backend.quantization.config import IntegerFormat
from backend.queue import gate, permissions
from backend.queue.actor import Actor
from backend.sensitivity.profile import Format, SensitivityProfile
from backend.statistics.tensors import SENSITIVITY
from backend.store import queries
from backend.store.states import ACTIVE, State
from backend.store.tables import Job
from jobs.fields.models import resolve_model
from jobs.profile.kind import KIND, NAME
from jobs.profile.profiles import (
    CALIBRATION_TOKENS,
    WEIGHTS_MARK,
    WIDEST_INPUT,
    budget_method,
    weights_fingerprint,
)
from jobs.submit import check_and_estimate
from ui.api_errors import error_response
from ui.format import count, duration, number
from ui.pages.workbench.formats import BITS, format_parts, names_of
from ui.runs.profiles import METHOD_BUDGETS, fronts_of, heldout_text, profile_at
from ui.security.auth import current_user
from ui.theme import BLUE, VERMILLION
from ui.widgets.explorer import cached_by
from ui.widgets.packed import PackedArrays

PROFILE, BUDGET = "/slimscope/workbench/profile", "/slimscope/workbench/budget"
FRONTS = {"quantized": ("by bits", BLUE), "pruned": ("by sparsity", VERMILLION)}
DENSE_CODE = 255
MAX_BUDGET_LETTERS = 60
PINS = re.compile(r"\d{1,5}(_\d{1,5}){0,9999}", re.ASCII)  # positions of layers
PRESET = "default"  # preset of a new profile
AUTOMATIC = "toy"  # profiled automatically on the first visit, within seconds


def profiles_of(model: str) -> list[Job]:
    """Runs that have profiled a model, finished runs first, then newest first; "" for any model."""
    jobs = [j for j in queries.runs_with_profile(SENSITIVITY) if model in ("", j.config["model"])]
    return sorted(jobs, key=lambda job: job.state != State.SUCCEEDED)


def knowledge(run: Job, layer_count: int) -> dict[str, Any]:
    """Facts of a profile for a sentence, windows of its `text` and tokens of each, and in
    `outdated` the reason why a new one is needed. Records of imported runs may be damaged."""
    profile, record = profile_at(run.run), run.environment or {}
    if profile is None:
        outdated = f"{run.run} cannot be read with this version."
        return {"facts": [], "text": (0, 0), "outdated": outdated}
    mark, outdated = record.get(WEIGHTS_MARK), ""
    if mark and weights_fingerprint(resolve_model(profile.model, reads=False)) not in ("", mark):
        outdated = f"{run.run} measured other weights of this model."
    windows, context = heldout_text(record)
    tokens = windows * context
    facts = [f"{len(profile.layers)} of {layer_count} layers in {len(profile.formats)} formats"]
    facts.append(_estimate(profile))
    if tokens:
        facts.append(f"{count(tokens)} held-out tokens in windows of {context}")
    calibration, inputs = (record.get(name) for name in (CALIBRATION_TOKENS, WIDEST_INPUT))
    if isinstance(calibration, int) and isinstance(inputs, int) and calibration < 2 * inputs:
        facts.append(f"only {count(calibration)} calibration tokens for {count(inputs)} inputs")
    if profile.times:
        facts.append(f"times of a token on {profile.times.threads} threads")
    return {"facts": facts, "text": (windows, context), "outdated": outdated}


def _estimate(profile: SensitivityProfile) -> str:
    """Formats with a measured loss, and the agreement of the estimate with them."""
    kl = np.isfinite(profile.figure("kl"))
    inside = np.array([layer.block >= 0 for layer in profile.layers])
    measured = [str(profile.formats[at]) for at in np.flatnonzero(kl[inside].any(0))]
    if not measured:
        return f"losses estimated {profile.estimate}"
    agreement = number(profile.agreement("fisher"), 2)
    return (
        f"measured in {' and '.join(measured)}, else estimated {profile.estimate} "
        f"(rank correlation {agreement})"
    )


def new_profile(model: str, actor: Actor) -> dict[str, Any]:
    """The profile that a button queues: its time, the run that already computes one, whether the
    page queues it automatically, or the reason why it is not possible."""
    active = queries.jobs(ACTIVE, NAME)
    run = next((job.run for job in active if job.config.get("model") == model), "")
    offer = {"run": run, "time": "", "automatic": False, "why": permissions.may_not_add(actor)}
    if run or offer["why"]:
        return offer
    try:
        _, estimate = check_and_estimate(NAME, {"model": model, **KIND.presets[PRESET]})
    except SlimscopeError as error:
        return offer | {"why": f"{error.what} {error.why} {error.do}"}
    time = duration(estimate.seconds) if estimate.seconds else ""
    return offer | {"time": time, "automatic": model == AUTOMATIC and actor.role == "host"}


# tables of predictions and mixes ------------------------------------------------------------------


def profile(request: Request) -> Response:
    """Answer `?run=profile-0004` with the metrics of each layer and the fronts, in binary form."""
    run = request.query_params.get("run", "")
    packed = packed_profile(run)
    if packed is None:
        return error_response(NotFoundError(f"{run[:40]!r} is no profile."), 404)
    return packed.answer(request)


@cached_by(queries.profiles_mark)
def packed_profile(run: str) -> PackedArrays | None:
    """Arrays error and predicted [layers, formats], NaN where missing; for each front, the format
    of every layer [points, layers] (255: dense) and its bytes, loss and milliseconds [points].
    Fronts by time have the suffix _ms."""
    known = profile_at(run)
    if known is None:
        return None
    layers, formats = known.layers, known.formats
    predicted = np.where(np.isfinite(known.predicted), known.predicted, np.nan)
    arrays = {"error": known.figure("error").astype("<f4"), "predicted": predicted.astype("<f4")}
    fronts = fronts_of(run) or {}
    code = {form: at for at, form in enumerate(formats)} | {Format(): DENSE_CODE}
    for method, front in fronts.items():
        for kind, mixes in front.mixes.items():
            name = method if kind == METHOD_BUDGETS[method] else f"{method}_{kind}"
            chosen = [[code[mix.formats[x.name]] for x in layers] for mix in mixes]
            times = [mix.milliseconds or np.nan for mix in mixes]
            arrays |= {
                f"{name}_formats": np.array(chosen, "<u1"),
                f"{name}_bytes": np.array([mix.nbytes for mix in mixes], "<f4"),
                f"{name}_loss": np.array([mix.loss for mix in mixes], "<f4"),
                f"{name}_ms": np.array(times, "<f4"),
            }
    widths = [
        Format(IntegerFormat(bits, x.width.group)) for x in formats if x.width for bits in BITS
    ]
    header = {
        "run": run,
        "formats": [*map(names_of, formats)],
        "parts": format_parts([*formats, *widths], layers),
        "fronts": [(method, *FRONTS[method]) for method in fronts],
        "timed": known.times is not None,
        "layers": [x.name for x in layers],
    }
    return PackedArrays.of(header, arrays)


# the mix of a typed budget ------------------------------------------------------------------------


def budget(request: Request) -> Response:
    """Answer `?run=profile-0004&text=80 MB&front=quantized&state=~rtn~…&pins=0_7`: the formats of
    all layers in the best allocation, or in `refused` the reason why there is none. `pins`:
    positions of layers that keep their format in `state`."""
    try:
        actor = current_user(request)
        if actor.role != "host":
            gate.previews.spend(actor)
        return JSONResponse(_solved(request.query_params))
    except ConfigError as error:
        words = " ".join(filter(None, (error.what, error.why, error.do)))
        return JSONResponse({"refused": words})
    except SlimscopeError as error:
        return error_response(error)


def _solved(query: Mapping[str, str]) -> dict[str, Any]:
    run, text = query.get("run", ""), query.get("text", "")
    known = profile_at(run)
    if known is None:
        raise NotFoundError(f"{run[:40]!r} is no profile.", "", "Choose another model.")
    try:
        asked = Budget.parse(text[:MAX_BUDGET_LETTERS])
    except ValueError as error:
        raise ConfigError(str(error), field="budget") from error
    method = budget_method(asked, "pruned" if query.get("front") == "pruned" else "quantized")
    front = (fronts_of(run) or {}).get(method)
    if front is None:
        what = f"{run} has no {method} formats."
        raise ConfigError(what, "", "Profile the model with such formats.", "budget")
    facts = resolve_model(known.model, reads=False).facts
    layers = (*facts.linears, *facts.embeddings)
    address = query.get("state", "")
    state = state_at(address, layers).formats if address else {x.name: Format() for x in layers}
    pins = _pins(query.get("pins", ""), layers, state, {*map(str, (Format(), *known.formats))})
    mix = front.solver.solve(asked, pins)
    formats = [mix.formats.get(x.name, state[x.name]) for x in layers]
    return {
        "unit": asked.kind,
        "front": method,
        "ms": mix.milliseconds,
        "formats": [*map(names_of, formats)],
        "parts": format_parts({*formats}, layers),
    }


def _pins(
    text: str, layers: Sequence[LinearShape], state: Mapping[str, Format], profiled: set[str]
) -> dict[str, str]:
    places = [int(place) for place in text.split("_")] if PINS.fullmatch(text) else []
    if (text and not places) or any(place >= len(layers) for place in places):
        raise ConfigError("The list of pinned layers is damaged.", "", "Pin the layers again.")
    pins = {layers[place].name: str(state[layers[place].name]) for place in places}
    if unknown := {*pins.values()} - profiled:
        what = f"A pinned layer has the format {min(unknown)}."
        raise ConfigError(what, "The profile has not measured it.", "Unpin the layer.", "budget")
    return pins


# landmarks ----------------------------------------------------------------------------------------


@cache
def landmarks_file() -> dict[str, Any]:
    """llama.cpp files by the fingerprint of their model's weights, and the conditions of their
    measurement."""
    read: dict[str, Any] = json.loads(Path(__file__).with_name("landmarks.json").read_text())
    return read


def landmarks(model: str) -> list[dict[str, Any]]:
    """llama.cpp files of the same weights: name, megabytes, perplexity ÷ dense with its interval,
    and the source of these figures."""
    mark = weights_fingerprint(resolve_model(model, reads=False))
    files, source = landmarks_file()["models"].get(mark, []), landmarks_file()["source"]
    return [file | {"source": source} for file in files]
