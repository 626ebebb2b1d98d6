"""Several processes that train together end where one does."""

from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest
import torch
from torch import Tensor

from backend.checkpoints import Checkpoints
from backend.drafters.config import DECLARED_DRAFTERS, TrainingConfig
from backend.drafters.training.hidden_state_cache import (
    HELD,
    LEARNT,
    SequenceSources,
    collect,
    stored,
)
from backend.drafters.training.trainer import DrafterTrainer
from backend.errors import CancelledError
from backend.metric_key import MetricKey
from backend.models.loading import load
from backend.reporter import SilentReporter
from backend.training import distributed
from tests.drafters.toys import END, base, drafter_of, toy_prompts
from tests.quantization.dlqat.runs import begun
from tests.quantization.dlqat.test_training import LENGTH, QUICK
from tests.training.together import together

STEPS = 4
DRAFTING = {
    "minutes": 0,
    "steps": STEPS,
    "batch": 6,
    "rate": 2e-3,
}


class LossRecorder(SilentReporter):
    """Keeps the losses; asks to stop between two steps, after so many points."""

    def __init__(self, stop_after: int = 10**9) -> None:
        self.losses: dict[str, float] = {}
        self.stop_after, self.reported = stop_after, 0

    def progress(self, done: float, total: float, stage: str) -> None:
        self.reported = len(self.losses)

    def metric(self, key: MetricKey, value: float, step: int) -> None:
        if key.family == "loss":
            self.losses[f"{key} {step}"] = value

    def should_stop(self) -> bool:
        return self.reported >= self.stop_after


@dataclass(frozen=True)
class Trained:
    """What one process knows at the end: the losses it has reported, and what it has learnt."""

    losses: dict[str, float]
    learnt: dict[str, Tensor]


@pytest.fixture
def rendezvous(tmp_path: Path):
    """Makes names of files by which processes meet."""
    numbers = count()
    return lambda: tmp_path / f"a rendezvous {next(numbers)}"


# what they exchange -------------------------------------------------------------------------------


def exchange() -> tuple[list[Tensor | None], float, list[str], Tensor]:
    """Gradients and a total, tasks, and rows."""
    both, one, none = (torch.nn.Parameter(torch.full((2, 2), 7.0)) for _ in range(3))
    both.grad = torch.full((2, 2), 1.0 + distributed.rank())
    one.grad = torch.eye(2) if distributed.rank() == 1 else None
    total = distributed.all_reduce_gradients(0.5, [both, one, none])
    assert distributed.shard(torch.arange(5)).tolist() == [*range(distributed.rank(), 5, 2)]
    assert distributed.broadcast(distributed.rank() + 3) == 3
    with torch.no_grad():
        none += distributed.rank()
    distributed.broadcast_parameters([none])
    if distributed.is_first():
        tasks = ["one", "another"]
        for task in tasks:
            distributed.announce(task)
            rows = torch.arange(6).view(2, 3)
            distributed.broadcast(rows)
        distributed.announce("")
    else:
        tasks = [
            task
            for task in distributed.tasks()
            if len(rows := distributed.broadcast(torch.empty(0)))
        ]
    assert distributed.world_size() == 1
    return [both.grad, one.grad, none.grad, none.detach()], total, tasks, rows


def ask_one_to_stop(told: int) -> bool:
    """Whether this process stops when the one of that number is asked to."""
    told_this = LossRecorder(stop_after=0 if distributed.rank() == told else 1)
    try:
        distributed.stop_if_any_asked(told_this)
    except CancelledError:
        return distributed.world_size() == 1
    return False


def test_all_processes_have_the_same_after_each_exchange(rendezvous) -> None:
    for gradients, total, tasks, rows in together(2, rendezvous(), exchange):
        assert gradients[0].tolist() == [[3, 3], [3, 3]] and torch.equal(gradients[1], torch.eye(2))
        assert gradients[2] is None and gradients[3].tolist() == [[7, 7], [7, 7]]
        assert (total, tasks) == (1.0, ["one", "another"])
        assert rows.tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(("told", "stop"), [(0, True), (1, True), (2, False)])
def test_all_processes_stop_where_one_is_asked_to(rendezvous, told: int, stop: bool) -> None:
    assert together(2, rendezvous(), ask_one_to_stop, told) == [stop, stop]


# DL-QAT -------------------------------------------------------------------------------------------


def train_dlqat(
    folder: Path, rows: Tensor, fields: dict[str, object], stop_after: int = 10**9
) -> Trained:
    """Make the stages of the toy, saved every second step; of a process after the first, take
    part."""
    reporter = LossRecorder(stop_after)
    qat = begun(load("toy").model, folder, rows, rows[:2], seed=1, **QUICK | fields)
    patch = pytest.MonkeyPatch()
    patch.setattr("backend.quantization.dlqat.trainer.SAVE_EVERY", 2)
    try:
        if distributed.is_first():
            for stage in qat.prepare(reporter):
                qat.make(stage, reporter)
            distributed.announce("")
        else:
            qat.follow()
    except CancelledError:
        return Trained(reporter.losses, {})
    finally:
        patch.undo()
    scales = {name: layer.grid.scale for name, layer in qat.converted(qat.stages[0]).items()}
    return Trained(reporter.losses, scales)


def assert_close(one: Trained, other: Trained, rel: float) -> None:
    assert other.losses == pytest.approx(one.losses, rel=rel) and one.losses
    for name, tensor in one.learnt.items():
        torch.testing.assert_close(other.learnt[name], tensor, rtol=5e-3, atol=5e-4)


def test_dlqat_on_two_processes_has_the_losses_of_one(
    tmp_path: Path, calibration: Tensor, rendezvous
) -> None:
    """With gradient accumulation, which two processes need less of, and LoRA."""
    rows = calibration[32:44, :LENGTH]
    fields = {"accumulate": 3, "batch": 2, "stages": "dlqat, lora"}
    whole = together(1, rendezvous(), train_dlqat, tmp_path / "one", rows, fields)[0]
    first, second = together(2, rendezvous(), train_dlqat, tmp_path / "two", rows, fields)
    assert len(whole.losses) == 2 * STEPS and second.losses == {}
    assert_close(whole, first, rel=1e-5)


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_dlqat_goes_on_with_another_number_of_processes(
    tmp_path: Path, calibration: Tensor, rendezvous, before: int, after: int
) -> None:
    """Stopped behind step 3; the checkpoint is of step 2."""
    rows, fields = calibration[32:44, :LENGTH], {"steps": STEPS}
    whole = together(1, rendezvous(), train_dlqat, tmp_path / "whole", rows, fields)[0]
    begun = together(before, rendezvous(), train_dlqat, tmp_path / "cut", rows, fields, 3)[0]
    ended = together(after, rendezvous(), train_dlqat, tmp_path / "cut", rows, fields)[0]
    assert [*begun.losses] == [f"loss@dlqat {n}" for n in (1, 2, 3)]
    assert [*ended.losses] == [f"loss@dlqat {n}" for n in (3, 4)]
    assert_close(whole, Trained(begun.losses | ended.losses, ended.learnt), rel=1e-5)


# drafters -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stored answers of the toy to 26 prompts."""
    prompts, folder = toy_prompts(32), tmp_path_factory.mktemp("texts")
    sources = SequenceSources(prompts[6:], prompts[:6], limit=24, ends=[END])
    collect(base(), sources, Checkpoints(folder), SilentReporter())
    return folder


def train_drafter(
    folder: Path,
    texts: Path,
    fields: dict[str, object],
    stop_after: int = 10**9,
    architecture: str = "amphista",
) -> Trained:
    """Train a drafter of the toy."""
    reporter = LossRecorder(stop_after)
    drafter = drafter_of(base(), seed=distributed.rank(), architecture=architecture)
    learnt, heldout = (stored(Checkpoints(texts), name) for name in (LEARNT, HELD))
    settings = TrainingConfig.model_validate({**DRAFTING, **fields})
    trainer = DrafterTrainer(
        drafter, base(), learnt, heldout, settings, 1, Checkpoints(folder), reporter
    )
    try:
        trainer.train()
    except CancelledError:
        trainer.save()
    return Trained(reporter.losses, {**drafter.state_dict()})


def test_a_drafter_on_two_has_the_losses_of_one(tmp_path: Path, texts: Path, rendezvous) -> None:
    """Of 26 sequences in batches of 5 the last batch has one: a process has nothing to learn from.
    The second process began with other weights."""
    fields = {"batch": 5, "steps": 7}
    whole = together(1, rendezvous(), train_drafter, tmp_path / "one", texts, fields)[0]
    first, second = together(2, rendezvous(), train_drafter, tmp_path / "two", texts, fields)
    assert len(whole.losses) == 7
    assert_close(whole, first, rel=1e-4)
    assert all(torch.equal(second.learnt[name], each) for name, each in first.learnt.items())


@pytest.mark.parametrize("architecture", sorted({*DECLARED_DRAFTERS} - {"amphista"}))
def test_drafters_of_all_architectures_train_on_two_processes(
    tmp_path: Path, texts: Path, rendezvous, architecture: str
) -> None:
    """Some need the anchors of a share sorted by sequence, filled up or not."""
    given = (texts, {"batch": 5, "steps": 2}, 10**9, architecture)
    whole = together(1, rendezvous(), train_drafter, tmp_path / "one", *given)[0]
    first = together(2, rendezvous(), train_drafter, tmp_path / "two", *given)[0]
    assert len(whole.losses) == 2
    assert_close(whole, first, rel=1e-4)


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_a_drafter_goes_on_with_another_number_of_processes(
    tmp_path: Path, texts: Path, rendezvous, before: int, after: int
) -> None:
    whole = together(1, rendezvous(), train_drafter, tmp_path / "whole", texts, {})[0]
    begun = together(before, rendezvous(), train_drafter, tmp_path / "cut", texts, {}, 2)[0]
    ended = together(after, rendezvous(), train_drafter, tmp_path / "cut", texts, {})[0]
    assert [*begun.losses] == ["loss 1", "loss 2"] and [*ended.losses] == ["loss 3", "loss 4"]
    assert_close(whole, Trained(begun.losses | ended.losses, ended.learnt), rel=1e-4)


def test_a_time_budget_gives_all_processes_the_same_number_of_steps(
    tmp_path: Path, texts: Path, rendezvous
) -> None:
    """Else one would wait for the other: each of them measures another pace."""
    fields = {"minutes": 0.01}
    first, second = together(2, rendezvous(), train_drafter, tmp_path / "run", texts, fields)
    assert len(first.losses) == len(second.losses) >= 12
