"""The times in the tables of faults hold."""

import pytest

from app import SUPERVISOR_CHECK_S
from backend.models.foreign_tokenizer import WORK_S
from backend.queue import lifecycle
from backend.queue.engines.ray import HEAD_TIMEOUT_S, RETRY_PAUSE_S, ROOM_CACHE_S
from backend.queue.engines.slurm import JOBS_CACHE_S
from backend.queue.scheduling import SILENT_MS
from backend.queue.supervisor import EXIT_GRACE_MS, KILL_AFTER_S, SHUTDOWN_GRACE_MS
from backend.settings import Settings
from backend.store.dialects.postgresql import (
    KEEPALIVE_IDLE_S,
    KEEPALIVE_INTERVAL_S,
    KEEPALIVE_PROBES,
)
from jobs.runtime.context import STOP_TIMEOUT_S
from jobs.runtime.row_buffer import RESPONSE_TIMEOUT_S, WRITE_INTERVAL_S
from jobs.runtime.uploads import MAX_RETRY_S
from jobs.serving.client import HUNG_S
from jobs.serving.server import MAX_PASS_S
from tests.test_docs import PROMISES, rows_of

ROWS = [row for promise in PROMISES for row in rows_of(*promise)]


FIRST_MS, SECOND_MS = (lifecycle.RETRY_DELAYS_MS[left] for left in (1, 0))
GRACE_S = Settings.model_fields["stop_grace"].default


@pytest.mark.parametrize(
    ("fault", "times"),
    [
        ("A machine is gone with its runs", [SHUTDOWN_GRACE_MS / 1000]),
        ("A machine is cut off for longer", [STOP_TIMEOUT_S]),
        (
            "The head does not answer",
            [SILENT_MS / 1000, EXIT_GRACE_MS / 1000, HEAD_TIMEOUT_S + RETRY_PAUSE_S],
        ),
        ("Machines come and go", [ROOM_CACHE_S]),
        ("The controller does not answer", [SILENT_MS / 1000, JOBS_CACHE_S]),
        ("The engine is set to another one", [SHUTDOWN_GRACE_MS / 1000]),
        ("The artifact store is full", [MAX_RETRY_S]),
        (
            "The supervisor dies, or is cut off",
            [KEEPALIVE_IDLE_S + KEEPALIVE_INTERVAL_S * KEEPALIVE_PROBES],
        ),
        ("A process of a run is killed", [FIRST_MS / 1000, SECOND_MS / 1000]),
        ("does not react to *Cancel*", [GRACE_S, KILL_AFTER_S, GRACE_S + KILL_AFTER_S]),
        ("The supervisor is killed", [SUPERVISOR_CHECK_S]),
        ("The disk is full", [lifecycle.AGAIN_DELAY_MS / 1000]),
        ("The system clock is set", [lifecycle.AGAIN_DELAY_MS / 1000]),
        (
            "The database is locked",
            [RESPONSE_TIMEOUT_S, WRITE_INTERVAL_S, lifecycle.AGAIN_DELAY_MS / 1000],
        ),
        ("The answering process hangs", [HUNG_S, MAX_PASS_S]),
        ("A chat template", [WORK_S]),
    ],
)
def test_its_times_are_those_of_the_code(fault: str, times: list[float]) -> None:
    (row,) = [row for row in ROWS if fault in row.split("|")[1]]
    assert [time for time in times if f"{time:g} s" not in row] == []
