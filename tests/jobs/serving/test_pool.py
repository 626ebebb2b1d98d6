"""Which models stay in memory, and who waits for room."""

import threading
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest

from backend.errors import CancelledError, ModelError
from backend.models.loading import LoadedModel, load
from jobs.fields.models import resolve_model
from jobs.serving import pool as pools
from jobs.serving.pool import ModelPool, key_of, size_of, version_of
from jobs.serving.server import CpuShare
from tests.conftest import Given

TOY = size_of(resolve_model("toy"), "cpu", "float32")


class Asking:
    """Uses models of a pool, and notes what was loaded and said."""

    def __init__(self, budget: int = 10 * TOY) -> None:
        self.pool = ModelPool(lambda: 4, budget)
        self.loaded: list[str] = []
        self.threads: list[int] = []  # of the other models, meanwhile
        self.said: list[str] = []
        self.stopped = False

    @contextmanager
    def using(self, name: str, fails: bool = False, drafter: Path | None = None):
        def loading(device: str) -> LoadedModel:
            if fails:
                raise ModelError("no", "no")
            self.loaded.append(name)
            self.threads.append(self.pool.threads())
            return load("toy", device)

        base = resolve_model("toy")
        key = key_of(name, base, "cpu", "float32")
        with self.pool.using(
            base,
            key,
            loading,
            lambda what, _: self.said.append(what),
            lambda: self.stopped,
            drafter,
        ) as model:
            yield model

    def use(self, *names: str) -> None:
        for name in names:
            with self.using(name):
                pass


@pytest.fixture
def asking(current: object) -> Callable[..., Asking]:
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
    assert those.threads == [2] * 4 and those.pool.threads() == 4


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


def test_half_of_the_threads_are_left_to_jobs(given: Given) -> None:
    given(THREADS="8")
    share = CpuShare()
    assert share.threads() == 8
    share.jobs = True
    assert share.threads() == 4


def test_a_drafter_is_loaded_once_whatever_its_trees_are(
    asking: Callable[..., Asking], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bound: list[object] = []
    made: list[int] = []

    @dataclass(frozen=True)
    class Saved:
        weights: dict[str, object] = field(default_factory=dict)

        def bind(self, target: object) -> object:
            bound.append(target)
            return object()

    def make(_: object, __: object, nodes: int, **___: object) -> object:
        made.append(nodes)
        return SimpleNamespace(nodes=nodes)

    monkeypatch.setattr(pools.Amphista, "load", lambda _: Saved())
    monkeypatch.setattr(pools, "make_proposer", make)
    with asking().using("a") as model:
        model.target = None
        one, same, other = (model.proposer(tmp_path, nodes) for nodes in (3, 3, 4))
        assert len(bound) == 1 and made == [3, 4]  # measured once for each tree
        assert one is not same and one.nodes == same.nodes != other.nodes
        for nodes in range(5, 300):
            model.proposer(tmp_path, nodes)
        assert len(bound) == 1 and len(model._proposers) == pools.PROPOSERS_KEPT
        for number in range(9):
            model.proposer(tmp_path / f"{number}", 3)
        assert len(model._drafters) == pools.DRAFTERS_KEPT
        assert {key[:2] for key in model._proposers} <= model._drafters.keys()


@pytest.fixture
def drafters(tmp_path: Path) -> list[Path]:
    """Folders of drafters, each as large in memory as the model."""
    folders = [tmp_path / f"drafter-{number}" for number in range(4)]
    for folder in folders:
        folder.mkdir()
        (folder / pools.WEIGHTS).write_bytes(bytes(TOY // pools.DRAFTER_COPIES))
    return folders


def test_drafters_count_and_the_oldest_make_room(
    asking: Callable[..., Asking], drafters: list[Path]
) -> None:
    those = asking(budget=3 * TOY)
    for number, drafter in enumerate(drafters):
        with those.using("a", drafter=drafter) as model:
            assert model.bytes == min(number + 2, 3) * TOY
    assert [folder for folder, _ in model.drafters] == drafters[2:]
    those.use("b")  # a, which is not in use, makes room with its drafters
    assert len(those.pool) == 1


def test_who_finds_no_room_for_a_drafter_waits(
    asking: Callable[..., Asking], drafters: list[Path]
) -> None:
    those, entered = asking(budget=3 * TOY), threading.Event()

    def draft() -> None:
        with those.using("b", drafter=drafters[1]):
            entered.set()

    with those.using("a", drafter=drafters[0]):  # two of three
        thread = threading.Thread(target=draft)
        thread.start()
        assert not entered.wait(0.2) and "Waiting for" in those.said[-1]
        those.use("b")  # without a drafter there is room
    thread.join(60)
    assert entered.is_set()


def test_a_drafter_too_large_beside_its_model_is_tried(
    asking: Callable[..., Asking], drafters: list[Path]
) -> None:
    with asking(budget=TOY).using("a", drafter=drafters[0]) as model:
        assert model.bytes == 2 * TOY
