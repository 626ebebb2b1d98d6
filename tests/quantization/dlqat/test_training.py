"""Training loop: gradients, losses, schedule, and bit-exact resuming."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from backend.errors import CancelledError, ComputeError
from backend.models.blocks import swap_modules
from backend.quantization.config import DLQATStage
from backend.quantization.dlqat import trainer as room
from backend.quantization.dlqat.pipeline import DLQAT
from backend.quantization.dlqat.trainer import _epoch_order, rate_factor
from tests.conftest import ALL
from tests.invariance.model_changes import change
from tests.quantization.dlqat.runs import QUIET, begun
from tests.refusals import refusal

ROWS, LENGTH = 12, 48
QUICK = {
    "group_size": 32,
    "rank": 16,
    "steps": 4,
    "batch": 2,
    "length": LENGTH,
    "learning_rate": 2e-3,
    "start": "rounded",
    "range_search": "minmax",
    "stages": "dlqat",
}


@pytest.fixture
def rows(calibration: Tensor) -> Tensor:
    """Training rows [12, 48]."""
    return calibration[32 : 32 + ROWS, :LENGTH]


@pytest.fixture
def start(toy, calibration: Tensor, rows: Tensor, tmp_path: Path):
    """Return a function that creates a run in a new or an existing folder."""

    def make(folder: str = "run", labels: Tensor | None = None, change=None, **fields) -> DLQAT:
        model, texts = toy(), (rows, calibration[:4, :LENGTH], labels)
        if change:
            change(model)
        held = calibration[4:12, :LENGTH]
        return begun(model, tmp_path / folder, *texts, heldout=held, **QUICK | fields)

    return make


def made(qat: DLQAT, reporter=QUIET, stage: str = "dlqat") -> dict[str, Tensor]:
    """Make `stage` and return the codes and scales of all its layers."""
    qat.prepare(reporter)
    qat.make(stage, reporter)
    return {
        f"{name}.{part}": tensor
        for name, layer in qat.converted(stage).items()
        for part, tensor in layer.tensors().items()
    }


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_the_schedule_rises_and_falls() -> None:
    factors = [rate_factor(step, 40, 0.1) for step in range(40)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4] == 1.0 and factors[22] == pytest.approx(0.5)
    assert factors[4:] == sorted(factors[4:], reverse=True) and 0 < factors[-1] < 0.01
    assert rate_factor(0, 1, 0.0) == 1.0 and rate_factor(0, 1, 0.9) == 1.0


def test_every_row_is_read_once_an_epoch() -> None:
    assert sorted(_epoch_order(3, 0, 50).tolist()) == list(range(50))
    assert not torch.equal(_epoch_order(3, 0, 50), _epoch_order(3, 1, 50))


def test_snapshots_are_taken_at_both_ends_and_between(start, recorder, monkeypatch) -> None:
    told = recorder()
    kept: list = []
    told.profile = kept.append
    monkeypatch.setattr("backend.quantization.dlqat.statistics.SNAPSHOTS", 3)
    qat = start(steps=8)
    frozen = made(qat, told)
    taken = {(p.name, p.step) for p in kept}
    assert {step for name, step in taken if name == "magnitude"} == {0, 4, 8}
    assert {step for name, step in taken if name == "scale"} == {0, 8}
    last = {(p.tensor, p.name): p.values for p in kept if p.step == 8}
    name = next(iter(qat.run.linears))
    scale, codes = frozen[f"{name}.scale"], frozen[f"{name}.codes"]
    of = f"{name}.weight"
    assert torch.allclose(torch.from_numpy(last[of, "scale"]), scale, rtol=1e-3)
    assert last[of, "codes"].tolist() == torch.bincount(codes.flatten(), minlength=8).tolist()
    W = qat.converted(DLQATStage.DLQAT)[name].dense() - qat.run.linears[name].read()
    error = W.view(*scale.shape, -1).square().mean(-1).sqrt()
    assert torch.allclose(torch.from_numpy(last[of, "error"]), error, rtol=5e-3, atol=1e-5)
    worst = last[of, "worst"]
    place = torch.from_numpy(last[of, "error"]).flatten().argmax().item()
    assert tuple(worst[0, :2]) == divmod(place, scale.shape[1]) and worst[0, 2] == 4
    group = W.view(*scale.shape, -1).view(-1, 32)[place]
    kept = torch.from_numpy(worst[0, 3:])
    assert torch.allclose(kept[32:] - kept[:32], group, atol=1e-3)  # 12-bit mantissas
    assert last[of, "clipped"].min() >= 0 and last[of, "clipped"].max() < 1


@pytest.mark.parametrize(
    ("done", "fields"),
    [*[(1, {}), (3, {})] * ALL, (2, {"precision": "bfloat16", "checkpointing": True})],
)
def test_a_stopped_training_resumes_bit_for_bit(start, recorder, done: int, fields: dict) -> None:
    """Stopped after step `done`; there are checkpoints of steps 2 and 4."""
    whole = made(start("whole", **fields))

    def stop(told) -> bool:
        return any(name == "loss@dlqat" and step >= done for name, _, step in told.metrics)

    with pytest.raises(CancelledError):
        made(start("cut", **fields), recorder(stop=stop))
    told = recorder()
    assert same(made(start("cut", **fields), told), whole)
    steps = [step for name, _, step in told.metrics if name == "loss@dlqat"]
    assert steps == list(range(1 if done < 2 else 3, 5))
    assert same(made(start("cut", **fields)), whole)  # everything is stored now


def test_a_damaged_checkpoint_is_passed_over(start, recorder, tmp_path: Path) -> None:
    whole = made(start("whole", steps=6))
    stop = recorder(stop=lambda told: any(s == 5 for n, _, s in told.metrics if "loss" in n))
    with pytest.raises(CancelledError):
        made(start("cut", steps=6), stop)
    newest = max(tmp_path.glob("cut/train-*"), key=lambda p: (p / "facts.json").read_text())
    (newest / "tensors.safetensors").write_bytes(b"damaged")
    told = recorder()
    assert same(made(start("cut", steps=6), told), whole)
    assert min(s for n, _, s in told.metrics if n == "loss@dlqat") == 3


def test_gradient_accumulation_equals_a_larger_batch(start) -> None:
    one = made(start("one", batch=4))
    four = made(start("four", batch=1, accumulate=4))
    scales = [k for k in one if k.endswith("scale")]
    assert all(torch.allclose(one[k], four[k], rtol=2e-3) for k in scales)
    assert max([(one[k] != four[k]).float().mean() for k in one if k.endswith("codes")]) < 0.002


@pytest.mark.parametrize(
    ("fields", "codes", "scales"),
    [
        ({"stages": "m-only"}, False, True),
        ({"stages": "lora-only"}, True, False),
        ({}, True, True),
        ({"rank": 0}, False, True),
    ],
)
def test_each_ablation_trains_only_its_parameters(
    start, fields: dict, codes: bool, scales: bool
) -> None:
    qat = start(learning_rate=1e-2, **fields)
    after = made(qat, stage=qat.stages[0])
    moved = {"codes": False, "scale": False}
    for name, linear in qat.run.linears.items():
        _, grid = qat._start(linear)
        moved["codes"] |= bool((after[f"{name}.codes"] != grid.codes(linear.read())).any())
        moved["scale"] |= not torch.equal(after[f"{name}.scale"], grid.scale.half().float())
    assert moved == {"codes": codes, "scale": scales}


def test_a_token_without_label_has_no_loss(start, rows: Tensor) -> None:
    """Rows with labels in their first half equal rows that end there."""
    labels = rows.clone()
    labels[:, LENGTH // 2 :] = room.IGNORED_LABEL
    judged = start(labels=labels)
    result = room.text_loss(judged.run, judged.run.model)(torch.arange(3))
    logits = judged.run.model(input_ids=rows[:3, : LENGTH // 2]).logits[:, :-1]
    expected = cross_entropy(
        logits.flatten(0, 1), rows[:3, 1 : LENGTH // 2].flatten(), reduction="sum"
    )
    assert result.item() == pytest.approx(expected.item(), rel=1e-4)


def test_the_teacher_is_the_dense_model(start, rows: Tensor) -> None:
    qat = start(stages="dlqat-kd", bits=2)
    layers = qat._layers(DLQATStage.DLQAT_KD, QUIET)
    with swap_modules(qat.run.model, layers):
        result = room.teacher_loss(qat.run, qat.run.model, layers)(torch.arange(2))
        q = qat.run.model(input_ids=rows[:2]).logits[:, :-1].log_softmax(-1)
    p = qat.run.model(input_ids=rows[:2]).logits[:, :-1].log_softmax(-1)
    expected = kl_div(q, p, reduction="sum", log_target=True)
    assert result.item() == pytest.approx(expected.item(), rel=1e-4) and expected > 1


@pytest.mark.parametrize("after", [0, 3])
def test_a_loss_that_is_not_finite_stops_with_the_last_good_step(
    start, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    calls = []

    def broken(run, model):
        real = room.text_loss(run, model)

        def loss(rows: Tensor) -> Tensor:
            calls.append(1)
            return real(rows) * (math.nan if len(calls) > after else 1)

        return loss

    monkeypatch.setattr("backend.quantization.dlqat.pipeline.text_loss", broken)
    told = ["checkpoint is at step 2"] if after == 3 else []
    with refusal("learning_rate", f"step {after + 1}", *told, error=ComputeError):
        made(start())


@pytest.mark.parametrize("count", [0, 5] if ALL else [5])
def test_a_rate_that_is_too_high_is_lowered_even_if_stopped(
    start, recorder, tmp_path: Path, count: int
) -> None:
    """Stopped after `count` points of the loss, the run ends with the same bits."""
    whole, told, rate = start("whole", learning_rate=1.0), recorder(), 1.0
    expected = made(whole, told)
    lowered = whole.lowered_rate("dlqat")
    assert lowered in (0.25, 0.0625)
    messages = [line for line in told.lines if "is repeated at" in line]
    assert len(messages) == round(math.log(rate / lowered, 4))
    assert "raised the held-out perplexity by" in messages[0] or "diverged" in messages[0]
    assert told.progressed[-1][:2] == (4, 4)
    cut = start("cut", learning_rate=1.0)
    with pytest.raises(CancelledError):
        made(cut, recorder(stop=lambda found: len(found.metrics) > count))
    again = start("cut", learning_rate=1.0)
    assert same(made(again), expected) and again.lowered_rate("dlqat") == lowered
    assert start("low", learning_rate=1e-4).lowered_rate("dlqat") is None


def test_a_training_that_helps_is_not_repeated(start, recorder) -> None:
    told, qat = recorder(), start()
    made(qat, told)
    assert qat.lowered_rate("dlqat") is None and not any("repeated" in line for line in told.lines)
    losses_after = qat.heldout_losses("dlqat", QUIET)
    assert len(losses_after) == 8 and all(map(math.isfinite, losses_after))


def test_a_low_rank_update_is_the_same_in_other_units_of_the_weights(start) -> None:
    """Norms absorb a power of two from the layers after them. Codes: see tests/invariance."""
    few = {"stages": "lora", "saved_precision": "float32", "start": "gptq"}
    one = start("one", **few)
    other = start("other", change=lambda model: change(model, "norms"), **few)
    for qat in (one, other):
        qat.prepare(QUIET)
        qat.make("lora", QUIET)
    for part in one.run.linears:
        a, b = (qat.run.store.tensors("stage-lora", part) for qat in (one, other))
        assert all(torch.equal(a[key], b[key]) for key in a)
