"""Models in the pool: which stay in memory, and which requests wait for memory."""

import threading
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest

from backend.errors import CancelledError, ModelError
from backend.models.loading import LoadedModel, load
from jobs.fields.models import resolve_model
from jobs.serving import pool as pools
from jobs.serving.pool import ModelPool, folder_version, model_key, weight_bytes
from jobs.serving.server import CpuShare
from tests.conftest import Given
from tests.waiting import until

TOY = weight_bytes(resolve_model("toy"), "cpu", "float32")


class PoolUser:
    """User of the models of a pool, which records loads and wait notices."""

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
        key = model_key(name, base, "cpu", "float32")
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


pytestmark = pytest.mark.usefixtures("current")


def test_the_two_most_recently_used_models_stay() -> None:
    user = PoolUser()
    user.use("a", "b", "a", "b")
    assert user.loaded == ["a", "b"] and user.said == ["Loading Toy stories (built in)"] * 2
    user.use("a", "c")  # b was used longest ago
    user.use("a", "c")
    assert user.loaded == ["a", "b", "c"] and len(user.pool) == 2
    user.use("b")
    assert user.loaded == ["a", "b", "c", "b"]
    assert user.threads == [2] * 4 and user.pool.threads() == 4


def test_a_limit_of_one_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "MAX_MODELS", 1)
    user = PoolUser()
    user.use("a", "b", "a")
    assert user.loaded == ["a", "b", "a"] and len(user.pool) == 1


def test_models_in_use_may_exceed_the_limit() -> None:
    user = PoolUser()
    with ExitStack() as stack:
        models = [stack.enter_context(user.using(name)) for name in "abca"]
        assert len(user.pool) == 3 and models[0] is models[3] and models[0].users == 2
    assert len(user.pool) == 2


def test_a_request_without_memory_waits_and_can_be_cancelled() -> None:
    user, entered = PoolUser(budget=TOY), threading.Event()
    with user.using("a"):
        thread = threading.Thread(target=lambda: (user.use("b"), entered.set()))
        thread.start()
        until(lambda: any("Waiting for" in said for said in user.said), 20)
        assert not entered.is_set()
    assert entered.wait(20)
    thread.join()
    assert user.loaded == ["a", "b"] and len(user.pool) == 1
    with user.using("a"):
        user.stopped = True
        with pytest.raises(CancelledError):
            user.use("b")


def test_a_model_that_fails_to_load_takes_no_memory() -> None:
    user = PoolUser()
    with pytest.raises(ModelError), user.using("a", fails=True):
        pass
    assert len(user.pool) == 0
    user.use("a")
    assert user.loaded == ["a"]


def test_changed_files_are_another_version(tmp_path: Path) -> None:
    assert folder_version(tmp_path) == folder_version(tmp_path / "none") == 0
    (tmp_path / "model").touch()
    assert folder_version(tmp_path) > 0


def test_active_runs_get_half_of_the_threads(given: Given) -> None:
    given(THREADS="8")
    share = CpuShare()
    assert share.threads() == 8
    share.jobs = True
    assert share.threads() == 4


def test_a_drafter_is_loaded_once_for_all_its_trees(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
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
    with PoolUser().using("a") as model:
        model.target = None
        one, same, other = (model.proposer(tmp_path, nodes) for nodes in (3, 3, 4))
        assert len(bound) == 1 and made == [3, 4]  # measured once for each tree
        assert one is not same and one.nodes == same.nodes != other.nodes
        for nodes in range(5, 300):
            model.proposer(tmp_path, nodes)
        assert len(bound) == 1 and len(model._proposers) == pools.MAX_PROPOSERS
        for number in range(9):
            model.proposer(tmp_path / f"{number}", 3)
        assert len(model._drafters) == pools.MAX_DRAFTERS
        assert {key[:2] for key in model._proposers} <= model._drafters.keys()


@pytest.fixture
def drafters(tmp_path: Path) -> list[Path]:
    """Folders of drafters, each as large in memory as the model."""
    folders = [tmp_path / f"drafter-{number}" for number in range(4)]
    for folder in folders:
        folder.mkdir()
        (folder / pools.WEIGHTS).write_bytes(bytes(TOY // pools.DRAFTER_COPIES))
    return folders


def test_drafters_count_toward_the_budget_and_the_oldest_are_dropped(
    drafters: list[Path],
) -> None:
    user = PoolUser(budget=3 * TOY)
    for number, drafter in enumerate(drafters):
        with user.using("a", drafter=drafter) as model:
            assert model.bytes == min(number + 2, 3) * TOY
    assert [folder for folder, _ in model.drafters] == drafters[2:]
    user.use("b")  # a, which is not in use, makes room with its drafters
    assert len(user.pool) == 1


def test_a_request_without_memory_for_its_drafter_waits(
    drafters: list[Path],
) -> None:
    user, entered = PoolUser(budget=3 * TOY), threading.Event()

    def draft() -> None:
        with user.using("b", drafter=drafters[1]):
            entered.set()

    with user.using("a", drafter=drafters[0]):  # two of three
        thread = threading.Thread(target=draft)
        thread.start()
        until(lambda: any("Waiting for" in said for said in user.said), 20)
        user.use("b")  # without a drafter there is room
        assert not entered.is_set()
    assert entered.wait(20)
    thread.join()


def test_a_drafter_beyond_the_budget_is_tried(
    drafters: list[Path],
) -> None:
    with PoolUser(budget=TOY).using("a", drafter=drafters[0]) as model:
        assert model.bytes == 2 * TOY
