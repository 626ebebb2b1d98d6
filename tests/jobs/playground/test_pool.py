"""Which models stay in memory, and who waits for room."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from backend.errors import CancelledError, ModelError
from backend.models.loading import LoadedModel, load
from backend.reporter import SilentReporter
from backend.settings import settings
from jobs.fields.base_model import resolve_model
from jobs.playground import pool as pools
from jobs.playground import warm_model
from jobs.playground.pool import ModelPool, size_of
from jobs.playground.share import GUEST_NICE, CpuShare
from jobs.playground.warm_model import version_of

TOY = size_of(resolve_model("toy"), "cpu", "float32")


class Asking:
    """Uses models of a pool, and notes what was loaded and said."""

    def __init__(self, budget: int = 10 * TOY) -> None:
        self.pool = ModelPool(budget)
        self.loaded: list[str] = []
        self.said: list[str] = []
        self.stopped = False

    @contextmanager
    def using(self, name: str, fails: bool = False):
        def loading(device: str) -> LoadedModel:
            if fails:
                raise ModelError("no", "no")
            self.loaded.append(name)
            return load("toy", device)

        reporter = SilentReporter()
        reporter.should_stop = lambda: self.stopped
        with self.pool.using(
            name, "cpu", "float32", loading, lambda what, _: self.said.append(what), reporter
        ) as model:
            yield model

    def use(self, *names: str) -> None:
        for name in names:
            with self.using(name):
                pass


@pytest.fixture
def asking(current: object, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Asking]:
    monkeypatch.setattr(pools, "resolve_model", lambda _: resolve_model("toy"))
    return Asking


def test_the_two_used_last_stay(asking: Callable[..., Asking]) -> None:
    those = asking()
    those.use("a", "b", "a", "b")
    assert those.loaded == ["a", "b"] and those.said == ["Loading Toy stories (built in)"] * 2
    those.use("a", "c")  # b was used longest ago
    those.use("a", "c")
    assert those.loaded == ["a", "b", "c"] and len(those.pool) == 2
    those.use("b")
    assert those.loaded == ["a", "b", "c", "b"]


def test_one_model_is_kept_where_that_is_the_limit(
    asking: Callable[..., Asking], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pools, "MODELS_KEPT", 1)
    those = asking()
    those.use("a", "b", "a")
    assert those.loaded == ["a", "b", "a"] and len(those.pool) == 1


def test_models_in_use_are_kept_beyond_the_limit(asking: Callable[..., Asking]) -> None:
    those = asking()
    with ExitStack() as stack:
        models = [stack.enter_context(those.using(name)) for name in "abca"]
        assert len(those.pool) == 3 and models[0] is models[3] and models[0].users == 2
    assert len(those.pool) == 2


def test_who_finds_no_room_waits_and_may_be_stopped(asking: Callable[..., Asking]) -> None:
    those, entered = asking(budget=TOY), threading.Event()
    with those.using("a"):
        thread = threading.Thread(target=lambda: (those.use("b"), entered.set()))
        thread.start()
        assert not entered.wait(0.2) and "Waiting for" in those.said[-1]
    thread.join(60)
    assert entered.is_set() and those.loaded == ["a", "b"] and len(those.pool) == 1
    with those.using("a"):
        those.stopped = True
        with pytest.raises(CancelledError):
            those.use("b")


def test_a_model_that_cannot_be_loaded_takes_no_room(asking: Callable[..., Asking]) -> None:
    those = asking()
    with pytest.raises(ModelError), those.using("a", fails=True):
        pass
    assert len(those.pool) == 0
    those.use("a")
    assert those.loaded == ["a"]


def test_files_that_changed_are_another_model(tmp_path: Path) -> None:
    assert version_of(tmp_path) == version_of(tmp_path / "none") == 0
    (tmp_path / "model").touch()
    assert version_of(tmp_path) > 0


def test_threads_are_divided_and_half_left_to_jobs(
    current: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLIMSCOPE_THREADS", "8")
    settings.cache_clear()
    share = CpuShare()
    assert (share.threads(), share.threads(2)) == (8, 2)
    share.jobs = True
    assert share.threads() == 4

    def both() -> None:  # the priority of a thread is lowered
        with share.one_more(False), share.one_more(True):
            assert share.threads() == 2
            share.jobs = False
            assert share.threads() == 4

    thread = threading.Thread(target=both)
    thread.start()
    thread.join()
    assert share.threads() == 8  # nothing is written


# what one guest was the first to need -------------------------------------------------------------


def priority() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def as_guest(do: Callable[[], None]) -> int:
    """The priority of a guest's thread that does this."""
    noted: list[int] = []

    def give() -> None:
        with CpuShare().one_more(guest=True):
            do()
            noted.append(priority())

    thread = threading.Thread(target=give)
    thread.start()
    thread.join()
    return noted[0]


@pytest.mark.skipif(sys.platform != "linux", reason="one priority for all threads")
def test_a_guest_who_is_first_loads_and_measures_with_the_priority_of_a_host(
    asking: Callable[..., Asking], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[int] = []

    def noted(*_: object, **__: object) -> object:
        seen.append(priority())
        return SimpleNamespace(lookup_length=4)

    monkeypatch.setattr(warm_model, "make_proposer", noted)
    monkeypatch.setattr(warm_model, "measure_costs", noted)
    monkeypatch.setattr(warm_model.Amphista, "load", noted)
    monkeypatch.setattr(warm_model, "TargetModel", noted)
    those = asking()

    def first() -> None:
        with those.using("a") as model, model.proposer(tmp_path, 3):
            assert model.lookup_length() == 4

    assert as_guest(first) == GUEST_NICE
    assert len(seen) == 4 and max(seen) < GUEST_NICE


def test_a_drafter_is_measured_once_even_if_the_first_text_was_stopped(
    asking: Callable[..., Asking], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made: list[Path] = []
    monkeypatch.setattr(warm_model.Amphista, "load", made.append)
    monkeypatch.setattr(warm_model, "make_proposer", lambda *_: object())
    with asking().using("a") as model:
        for _ in range(2):
            with pytest.raises(CancelledError), model.proposer(tmp_path, 3):
                raise CancelledError
    assert made == [tmp_path]
