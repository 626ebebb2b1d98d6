"""GPUs of this machine, for processes that do not import torch. Another process asks torch for them
once; nvidia-smi reports their free memory."""

import subprocess
import sys
import time
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from backend.models.memory import DeviceMemory

CODE_FOLDER = Path(__file__).resolve().parents[2]
PROBE_TIMEOUT_S = 60.0  # imports of torch and start of the driver
QUERY = ("nvidia-smi", "--query-gpu=uuid,memory.free", "--format=csv,noheader,nounits")
QUERY_TIMEOUT_S, QUERY_INTERVAL_S = 10.0, 2.0
MAX_REASON = 300  # characters


class Card(BaseModel):
    """A GPU that torch can use. `uuid` is empty if torch does not report it."""

    model_config = ConfigDict(frozen=True)

    device: str
    name: str
    uuid: str
    total_bytes: int = Field(gt=0)


class CardReport(BaseModel):
    """GPUs that torch can use; without any, the reason that torch gives."""

    model_config = ConfigDict(frozen=True)

    cards: tuple[Card, ...] = ()
    reason: str = Field("", max_length=MAX_REASON)


@lru_cache
def report() -> CardReport:
    """Return the GPUs that torch can use. Takes seconds once."""
    try:
        process = subprocess.run(
            [sys.executable, "-m", "backend.models.devices"],
            cwd=CODE_FOLDER,
            capture_output=True,
            text=True,
            check=False,
            timeout=PROBE_TIMEOUT_S,
        )
        return CardReport.model_validate_json(process.stdout.strip().rpartition("\n")[2])
    except (subprocess.TimeoutExpired, ValidationError) as error:
        return CardReport(reason=f"torch does not answer ({type(error).__name__})")


def card_memory(card: Card) -> DeviceMemory:
    """Return the memory of a GPU. Without nvidia-smi all of it counts as free."""
    free = _free_bytes(int(time.monotonic() / QUERY_INTERVAL_S)).get(card.uuid, card.total_bytes)
    return DeviceMemory(card.device, card.total_bytes, min(free, card.total_bytes))


@lru_cache(maxsize=1)
def _free_bytes(_moment: int) -> dict[str, int]:
    """Return the free bytes of each GPU by UUID, as nvidia-smi reports them; empty without it."""
    try:
        process = subprocess.run(
            QUERY, capture_output=True, text=True, check=False, timeout=QUERY_TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return {}
    free = dict[str, int]()
    for line in process.stdout.splitlines():
        uuid, _, mebibytes = line.partition(",")
        with suppress(ValueError):  # such as [N/A], or a message in place of the table
            free[uuid.strip().removeprefix("GPU-")] = int(mebibytes) * 2**20
    return free
