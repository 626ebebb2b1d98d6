"""Complete DL-QAT run on the toy: every stage, its quality, and resuming."""

import math
from collections.abc import Callable
from copy import deepcopy
from itertools import cycle, product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from backend.calibration.second_moments import InputCollector, StatisticsLevel
from backend.errors import CancelledError, ComputeError, ConfigError, NotFoundError
from backend.linalg.gram import NotPositiveDefiniteError
from backend.models.blocks import block_linears, swap_weights
from backend.models.loading import weights_hash
from backend.quantization import GRID_NAMES, gptq
from backend.quantization.config import DLQATConfig, DLQATStage
from backend.quantization.dlqat import passes
from backend.quantization.dlqat.pipeline import DLQAT
from backend.quantization.dlqat.trainer import StageTrainer
from backend.quantization.range_search import search_range
from backend.quantization.registry import QUANTIZERS
from tests.conftest import ALL
from tests.evaluation.conftest import CONFIGS
from tests.quantization.dlqat.runs import QUIET, begun, begun_mixture, finished
from tests.refusals import refusal

LENGTH = 64
MADE = [stage for stage in DLQATStage if stage != DLQATStage.DENSE]
QUICK = {
    "bits": 2,
    "group_size": 32,
    "rank": 16,
    "steps": 3,
    "batch": 2,
    "length": LENGTH,
}
STOPPED = {"stages": "rtn, gptq, dlqat, dlqat-kd, lora, lora-gptq"}


def run(qat: DLQAT, reporter=QUIET) -> dict[str, float]:
    """Make all stages and return the relative errors."""
    return finished(qat, reporter).audit(reporter)


def hashes(qat: DLQAT) -> dict[DLQATStage, str]:
    result = {}
    for stage in qat.stages:
        with qat.installed(stage):
            result[stage] = weights_hash(qat.run.model)
    return result


@torch.no_grad()
def perplexity(model: PreTrainedModel, ids: Tensor) -> float:
    return math.exp(model(input_ids=ids, labels=ids).loss.item())


@pytest.fixture
def start(toy, calibration: Tensor, tmp_path: Path):
    """Return a function that creates a run in a named folder."""

    def make(folder: str = "run", model: PreTrainedModel | None = None, **fields) -> DLQAT:
        rows = calibration[:, :LENGTH]
        return begun(model or toy(), tmp_path / folder, rows[16:64], rows[:8], **QUICK | fields)

    return make


@pytest.fixture(scope="module")
def everything(_toy, tmp_path_factory) -> dict[str, Any]:
    """Return the perplexities of all stages, trained long enough to matter, on held-out text."""
    rows, folder = _toy[1][:, :LENGTH], tmp_path_factory.mktemp("all")
    fields = QUICK | {"steps": 20, "batch": 4, "learning_rate": 3e-3, "stages": MADE}
    qat = begun(deepcopy(_toy[0]), folder, rows[16:96], rows[:16], **fields)
    before = weights_hash(qat.run.model)
    errors = run(qat)
    unseen, after = _toy[1][96:], weights_hash(qat.run.model)
    result = {"dense": perplexity(qat.run.model, unseen)}
    for stage in qat.stages:
        with qat.installed(stage):
            result[stage] = perplexity(qat.run.model, unseen)
    every = [before, after, *hashes(qat).values()]
    return {"perplexity": result, "errors": errors, "hashes": every}


def test_the_stages_rank_as_expected(everything) -> None:
    """Loose bounds for one seed and one small model; at 2 bits the differences are large."""
    ppl = everything["perplexity"]
    assert ppl["dense"] < ppl["dlqat"] < ppl["gptq"] < ppl["rtn"]
    assert ppl["lora"] < ppl["dlqat"] < ppl["lora-gptq"]
    assert ppl["dlqat"] < 1.05 * min(ppl["m-only"], ppl["lora-only"])
    assert ppl["dlqat-kd"] < ppl["gptq"]
    assert ppl["block-wise"] < ppl["gptq"]
    assert (ppl["rtn"] - ppl["dlqat"]) / (ppl["rtn"] - ppl["dense"]) > 0.5
    errors = everything["errors"]
    assert set(errors) == set(MADE) and errors["lora"] < errors["dlqat"]


def test_rtn_is_plain_rounding_of_the_dense_weights(start) -> None:
    qat = finished(start(stages="rtn"))
    for name, layer in qat.converted(DLQATStage.RTN).items():
        W = qat.run.linears[name].read()
        grid = search_range(W, 2, 32, "symmetric", "minmax")
        assert torch.equal(layer.codes.float(), grid.codes(W))
        assert torch.equal(layer.grid.scale, grid.scale.half().float())


def test_background_statistics_equal_those_computed_in_place(start, recorder, monkeypatch) -> None:
    observed = []
    # sums over two batches are rounded differently
    monkeypatch.setattr(
        "backend.quantization.dlqat.passes.balanced_batch_size", lambda _, rows, batch: batch
    )
    for threads in (1, 2):
        monkeypatch.setattr(torch, "get_num_threads", lambda n=threads: n)
        told = recorder()
        run(start(f"{threads}", stages="rtn"), told)
        observed.append([(x.tensor, x.stage, x.stats) for x in told.snapshots])
    assert observed[0] == observed[1] and len(observed[0]) == 2 * 7 * 3


def test_errors_are_measured_on_a_part_of_the_text(start, monkeypatch) -> None:
    read, opened = [], passes.open_stream

    def watched(model, ids, *rest):
        read.append(len(ids))
        return opened(model, ids, *rest)

    qat = finished(start(stages="rtn"))
    monkeypatch.setattr(passes, "open_stream", watched)
    monkeypatch.setattr("backend.quantization.dlqat.statistics.AUDIT_TOKENS", 1)
    assert 0 < qat.audit(QUIET)["rtn"] < 1
    assert read == [1] and len(qat.run.calibration) > 1


def test_a_16_bit_model_is_evaluated_in_16_bits(start, calibration: Tensor, toy) -> None:
    heldout = calibration[64:66, :LENGTH]
    for precision in ("float32", "bfloat16"):
        model = toy().bfloat16()
        fields = {"stages": "rtn, dlqat", "precision": precision}
        qat = start(precision, model, heldout=heldout, **fields)
        finished(qat)
        for stage in qat.stages:
            assert all(map(math.isfinite, qat.heldout_losses(stage, QUIET)))
            with qat.installed(stage):
                assert model(input_ids=heldout).logits.isfinite().all()


def test_a_stage_is_the_model_as_it_was_trained(start, unseen: Tensor, monkeypatch) -> None:
    observed = {}

    class Watched(StageTrainer):
        def train(self) -> None:
            super().train()
            observed[self.stage] = self.run.model(input_ids=unseen[:2]).logits

    monkeypatch.setattr("backend.quantization.dlqat.trainer.StageTrainer", Watched)
    qat = finished(start(stages="gptq, dlqat, lora", saved_precision="float32"))
    dense = qat.run.model(input_ids=unseen[:2]).logits
    with qat.installed("dlqat"):
        assert torch.equal(qat.run.model(input_ids=unseen[:2]).logits, observed["dlqat"])
    with qat.installed("lora"):
        merged = qat.run.model(input_ids=unseen[:2]).logits
    assert torch.allclose(merged, observed["lora"], atol=1e-4)
    assert (merged - dense).abs().max() > 1e-3


RUNS: dict[str, Callable[..., DLQAT]] = {
    "all kinds of stages": lambda start, folder: start(folder.name, **STOPPED),
    "block-wise": lambda start, folder: start(folder.name, stages="block-wise", grid="offset"),
    "a mixture": lambda _, folder: begun_mixture(folder, steps=6, batch=1, length=16, rank=2),
}


@pytest.fixture(scope="module")
def uninterrupted() -> dict[str, tuple[dict[str, float], dict[DLQATStage, str]]]:
    """Errors and weights of runs, once they were made."""
    return {}


@pytest.mark.parametrize(
    ("name", "count"),
    [
        *product(["all kinds of stages"], (3, 10, 17) if ALL else (10,)),
        *product(["block-wise", "a mixture"], (1, 2) if ALL else (1,)),
    ],
)
def test_a_stopped_run_goes_on_to_the_same_bits(
    start, recorder, tmp_path: Path, uninterrupted, name: str, count: int
) -> None:
    """The run is stopped after `count` of its checkpoints."""
    if name not in uninterrupted:
        whole = RUNS[name](start, tmp_path / "whole")
        uninterrupted[name] = run(whole), hashes(whole)
    with pytest.raises(CancelledError):
        stop = recorder(stop=lambda _: len([*(tmp_path / "cut").glob("[!.]*")]) >= count)
        run(RUNS[name](start, tmp_path / "cut"), stop)
    qat = RUNS[name](start, tmp_path / "cut")
    assert (run(qat), hashes(qat)) == uninterrupted[name]


def test_a_finished_run_computes_nothing_again(start, recorder) -> None:
    first = start()
    errors = run(first)
    told = recorder()
    qat = start()
    assert run(qat, told) == errors
    assert told.snapshots == [] and told.metrics == []
    assert qat.seconds == first.seconds  # sum of all attempts


def test_another_runs_folder_is_refused(start) -> None:
    run(start(stages="rtn"))
    with pytest.raises(ConfigError, match="another run"):
        start(steps=5)


def test_a_stage_that_was_not_made_is_an_error(start) -> None:
    with pytest.raises(NotFoundError, match="DL-QAT is not stored"):
        start().converted(DLQATStage.DLQAT)


def test_layers_left_dense_stay_dense(start) -> None:
    qat = start(exclude="0.*, *.down_proj", stages="gptq, dlqat")
    run(qat)
    with qat.installed(DLQATStage.DLQAT):
        changed = {
            (x.block, x.module): not torch.equal(x.read(), y.read())
            for b in range(3)
            for x, y in zip(
                block_linears(qat.run.model, b).values(),
                block_linears(start("other").run.model, b).values(),
                strict=True,
            )
        }
    assert changed == {(b, m): b > 0 and m != "mlp.down_proj" for b, m in changed}


@pytest.mark.parametrize("begin", ["gptq", "rounded"])
def test_zeros_of_a_pruned_model_stay(start, toy, begin: str) -> None:
    model = toy()
    for block in range(3):
        for linear in block_linears(model, block).values():
            W = linear.read()
            W[:, 1::2] = 0
            linear.write(W)
    stages = MADE if ALL or begin == "gptq" else "rtn, dlqat"
    qat = start(model=model, start=begin, keep_zeros=True, stages=stages)
    run(qat)
    for stage in qat.stages:
        if stage != DLQATStage.LORA:
            for layer in qat.converted(stage).values():
                dense = layer.dense()
                assert (dense[:, 1::2] == 0).all() and (dense != 0).any()


SEARCHES = ("minmax", "mse", "weighted", "lsq")


@pytest.mark.parametrize(
    ("space", "grid_type"),
    product(SEARCHES, GRID_NAMES) if ALL else zip(SEARCHES, cycle(GRID_NAMES), strict=False),
)
def test_training_works_with_every_range_search(start, space: str, grid_type: str) -> None:
    """In one block only, because all blocks are treated alike."""
    only = {"start": "rounded", "stages": "dlqat", "exclude": "0.*, 1.*"}
    qat = start(range_search=space, grid=grid_type, steps=1, **only)
    run(qat)
    zeros = torch.cat([x.grid.zero.flatten() for x in qat.converted(DLQATStage.DLQAT).values()])
    assert (zeros == 2).all() == (grid_type == "symmetric")
    assert torch.equal(zeros, zeros.round()) == (grid_type != "offset")


@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_other_architectures(family: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[family]).eval()
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.half().float()
        if name.endswith("bias"):
            parameter.data.normal_(std=0.1)
    ids = torch.randint(0, 64, (4, 24))
    qat = begun(
        model, tmp_path, ids, **QUICK | STOPPED | {"length": 24, "steps": 2, "group_size": 16}
    )
    assert run(qat)["dlqat"] < 1


def test_a_hessian_that_is_not_positive_definite_raises_the_damping(
    start, recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, tried = gptq.compensate, []

    def stubborn(W, U, *rest):
        tried.append(1)
        if len(tried) == 1:
            raise NotPositiveDefiniteError
        return real(W, U, *rest)

    monkeypatch.setattr(gptq, "compensate", stubborn)
    told = recorder()
    run(start(stages="rtn, gptq"), told)
    assert any("damping raised to 0.1" in line for line in told.lines)
    monkeypatch.setattr(
        gptq, "compensate", lambda *_: (_ for _ in ()).throw(NotPositiveDefiniteError())
    )
    with refusal("damping", error=ComputeError):
        run(start("never", stages="rtn, gptq"))


def test_overflow_in_the_stored_precision_is_refused(start, toy) -> None:
    model = toy()
    model.model.norm.weight.data[0] = 1e6
    with refusal("saved_precision", "model.norm.weight", error=ConfigError):
        start(model=model)


NAMES = ("gptq-order", "hqq", "awq", "rotated", "rotated-gptq")
FIELDS = {
    "group_size": 32,
    "grid": "offset",
    "range_search": "minmax",
    "saved_precision": "float32",
}


def test_every_quantizer_is_close_to_the_model_at_8_bits(
    toy, calibration: Tensor, tmp_path
) -> None:
    """At 8 bits almost nothing is lost in any basis."""
    texts = (calibration[:2, :32], calibration[:8, :64])
    qat = finished(begun(toy(), tmp_path, *texts, bits=8, stages=NAMES, **FIELDS))
    assert sorted(qat.stages) == sorted(NAMES)
    for stage in NAMES:
        layers = qat.converted(stage)
        assert all(x.basis.plain for x in layers.values()) == (stage in ("gptq-order", "hqq"))
    assert max(qat.audit(QUIET).values()) < 1e-4


def test_gptq_in_order_quantizes_every_layer_on_what_those_before_it_give(
    toy, calibration: Tensor, tmp_path
) -> None:
    texts = (calibration[:2, :32], calibration[:8, :64])
    qat = finished(begun(toy(), tmp_path, *texts, bits=3, stages="gptq-order", **FIELDS))
    model, linears = qat.run.model, block_linears(qat.run.model, 0)
    layers = qat.converted("gptq-order")
    order = (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",))
    before: dict[Tensor, Tensor] = {}
    for names in order:
        step = {m: x for m, x in linears.items() if m.endswith(names)}
        with swap_weights(before), InputCollector(step, StatisticsLevel.GRAM) as observed:
            model(input_ids=calibration[:8, :64])
            inputs = observed.finish()
        for module, linear in step.items():
            W, grid = QUANTIZERS["gptq-order"].quantize(
                linear.read(), inputs[module], qat.run.plan.groups[0], 0.01
            )
            result, expected = layers[linear.name].codes.float(), grid.codes(W)
            assert (result == expected).float().mean() > 0.99  # sums in another order
            before[linear.layer.get_parameter("weight")] = grid.nearest(W)


@pytest.mark.parametrize("name", ["rotated", "rotated-gptq"])
def test_rotation_cannot_keep_zeros(name: str) -> None:
    with pytest.raises(ValueError, match="mixes weights"):
        DLQATConfig.model_validate({"keep_zeros": True, "stages": name})
