"""The threads of passes: kept from pass to pass, of the priority of whoever decodes, ended with the
last model, and not missed by a fork."""

import gc
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig

from backend.decoding.native.model import NativeModel
from backend.models.loading import load
from backend.models.saving import check_saved, save
from tests.decoding.native.test_decoder import SIZES, built
from tests.fork_server import elsewhere
from tests.waiting import until

IDS = torch.arange(3, 23)
TASKS = Path("/proc/self/task")
linux = pytest.mark.skipif(not TASKS.is_dir(), reason="counts the threads in /proc")


def model() -> NativeModel:
    return NativeModel(built(LlamaConfig(**SIZES)))


def logits(native: NativeModel, threads: int, nice: int = 0, rows: int = 32) -> Tensor:
    """Of a pass in a thread that has so many, and this priority, over a cache of so many rows."""

    def decode() -> Tensor:
        torch.set_num_threads(threads)
        if nice:
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), nice)
        return native.forward(IDS, native.new_cache(rows), read_out=len(IDS))[1]

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(decode).result()


def niceness() -> list[int]:
    """Of the threads that wait for passes."""
    found = []
    for task in TASKS.iterdir():
        with suppress(OSError):  # it has just ended
            name, rest = (task / "stat").read_text().rsplit(") ", 1)
            found += [int(rest.split()[16])] * name.endswith("(slimscope")
    return found


def lives() -> list[int]:
    """Threads before a model, after one pass and after many, and after the model."""
    native, other = model(), model()
    logits(native, 1)
    counts = [len(niceness())]
    for passes in (1, 20):
        for _ in range(passes):
            logits(native, 4), logits(other, 4)
        counts.append(len(niceness()))
    del native
    gc.collect()
    counts.append(len(niceness()))
    del other
    gc.collect()
    until(lambda: not niceness(), 20)  # ended threads are listed for a moment
    return [*counts, len(niceness())]


@linux
def test_threads_live_as_long_as_the_last_model() -> None:
    assert elsewhere(lives) == [0, 3, 3, 3, 0]


def priorities() -> tuple[list[int], list[int]]:
    native = model()
    logits(native, 3)
    first = niceness()
    logits(native, 3, nice=7)
    return first, niceness()


@linux
def test_a_pass_has_threads_of_the_priority_of_its_own_thread() -> None:
    """A guest's pass must not run at a host's priority, nor a host's at a guest's."""
    first, second = elsewhere(priorities)
    assert first == [0, 0] and sorted(second) == [0, 0, 7, 7]


def forked() -> bool:
    """True if a child and its parent decode after a fork what they decoded before it."""
    native = model()
    expected = logits(native, 3)
    child = os.fork()
    if not child:
        code = 2
        try:
            code = int(not torch.equal(logits(native, 3), expected))
        finally:
            os._exit(code)
    return os.waitpid(child, 0)[1] == 0 and torch.equal(logits(native, 3), expected)


def test_a_fork_has_threads_of_its_own() -> None:
    assert elsewhere(forked)


def test_passes_at_the_same_time_have_threads_each() -> None:
    """Longer caches make the model extend its tables meanwhile."""
    native = model()
    expected = logits(native, 1)
    with ThreadPoolExecutor(6) as threads:
        found = list(threads.map(lambda n: logits(native, 1 + n % 4, rows=32 + n), range(60)))
    assert all(torch.equal(each, expected) for each in found)


def test_a_thread_that_builds_a_model_changes_no_pass_of_another(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """transformers sets the default type of all threads meanwhile: what the library writes to must
    be as large as before. Checking what was saved does not even set it."""
    native = model()
    before, default = logits(native, 2), torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert torch.equal(logits(native, 2), before)
    finally:
        torch.set_default_dtype(default)
    set_types: list[torch.dtype] = []
    save(built(LlamaConfig(**SIZES)).bfloat16(), load("toy").tokenizer, tmp_path, "")
    monkeypatch.setattr(torch, "set_default_dtype", set_types.append)
    check_saved(tmp_path)
    assert {*set_types} <= {torch.float32}
