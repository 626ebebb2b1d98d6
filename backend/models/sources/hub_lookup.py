"""Facts about models on the hub while a form is being filled in: each lookup has a deadline, and
its answer is kept for a while, so that edits of other fields do not repeat it. Does not import
torch."""

import time
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import Any

from backend.errors import ModelError
from backend.models.families.shapes import TensorHeader
from backend.models.sources import hub

DEADLINE_S = 20.0
ANSWER_TTL_S, ERROR_TTL_S = 600.0, 30.0
MAX_ANSWERS = 256
MAX_LOOKUPS = 4  # at the same time; others wait their turn, within their deadline

Headers = tuple[dict[str, Any], dict[str, TensorHeader]]
_pool = ThreadPoolExecutor(MAX_LOOKUPS, thread_name_prefix="hub")
_lock = Lock()
_lookups: dict[str, tuple[float, Future[Headers]]] = {}  # hub id -> start, answer


def headers_of(hub_id: str) -> Headers:
    """As `hub.headers_of`, from an answer of the last ten minutes where there is one. Raises
    ModelError: see `hub.headers_of`; or the hub did not answer within 20 s."""
    try:
        return _lookup(hub_id).result(DEADLINE_S)
    except TimeoutError as error:
        why = f"The hub did not answer within {DEADLINE_S:.0f} s."
        do = "Try again later, or choose a model on this machine."
        raise ModelError(f"{hub_id} cannot be checked.", why, do, field="model") from error


def _lookup(hub_id: str) -> Future[Headers]:
    """The lookup of a model: one that is under way, or whose answer is fresh, or a new one."""
    with _lock:
        stale = [key for key, (start, lookup) in _lookups.items() if _is_stale(start, lookup)]
        for key in [*stale, *list(_lookups)[: len(_lookups) - MAX_ANSWERS]]:
            _lookups.pop(key, None)
        if hub_id not in _lookups:
            _lookups[hub_id] = time.monotonic(), _pool.submit(hub.headers_of, hub_id)
        return _lookups[hub_id][1]


def _is_stale(start: float, lookup: Future[Headers]) -> bool:
    age = time.monotonic() - start
    return lookup.done() and age > (ERROR_TTL_S if lookup.exception() else ANSWER_TTL_S)
