"""Runs that produce a state: the steps and costs of each effort, and the URL of *New run* with all
fields filled in."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, get_args
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from backend.errors import ConfigError, SlimscopeError
from backend.queue import gate
from jobs.operations.live import Effort, plan_state
from ui.api_errors import error_response
from ui.format import duration, size
from ui.security.auth import current_user

RUNS, NEW_RUN = "/slimscope/workbench/runs", "new-run"
ONE_METHOD = "This state needs only one of them."


def runs(request: Request) -> Response:
    """Answer `?model=toy&state=~wanda~rtn~50p_dense~0x21_1`: `cost`, `warnings` and `address` by
    effort, or in `refused` the reason why the effort is not possible."""
    query = request.query_params
    try:
        actor = current_user(request)
        if actor.role != "host":
            gate.previews.spend(actor)
        model, state = query.get("model", ""), query.get("state", "")
        plans = {effort: _plan(model, state, effort) for effort in get_args(Effort)}
        return JSONResponse(plans)
    except SlimscopeError as error:
        return error_response(error)


def _plan(model: str, state: str, effort: Effort) -> dict[str, str]:
    try:
        steps = plan_state(model, state, effort)
    except ConfigError as error:
        return {"refused": " ".join(filter(None, (error.what, error.why, error.do)))}
    if effort == "full" and len(steps) < 2:
        return {"refused": ONE_METHOD}
    kinds = ", then ".join(step["kind"] for step in steps)
    seconds = sum(step["seconds"] or 0 for step in steps)
    memory = max(step["bytes"] or 0 for step in steps)
    return {
        "cost": f"{kinds}: about {duration(seconds)}, {size(memory)} of memory.",
        "warnings": " ".join(warning for step in steps for warning in step["warnings"]),
        "address": form_address(steps),
    }


def form_address(steps: Sequence[Mapping[str, Any]]) -> str:
    """The URL of *New run*: one parameter per field of a single run, or one `step` per step."""
    first = steps[0]["config"]
    if len(steps) == 1:
        pairs = [("kind", steps[0]["kind"]), *((name, _text(first[name])) for name in first)]
    else:
        pairs = [("model", first["model"])]
        for step in steps:
            fields = {name: value for name, value in step["config"].items() if name != "model"}
            pairs.append(("step", _text({step["kind"]: fields})))
    return f"{NEW_RUN}?{urlencode(pairs)}"


def _text(value: Any) -> str:
    """A text unchanged, any other value as compact JSON."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
