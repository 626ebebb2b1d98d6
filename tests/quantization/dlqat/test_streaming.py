"""Tests that a run of a streamed model equals a run of the model in memory, with one set of weights
in memory at a time."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from backend.models.block_offload import all_resident
from backend.models.blocks import decoder_blocks
from backend.models.loading import load
from backend.quantization.dlqat.linear import DLQATLinear
from backend.quantization.dlqat.pipeline import DLQAT
from backend.quantization.dlqat.trainer import StageTrainer
from tests.quantization.dlqat.runs import QUIET, begun, finished

STAGES = "rtn, gptq, block-wise, dlqat, dlqat-kd, lora, lora-gptq"
FIELDS = {"steps": 3, "batch": 2, "rank": 4, "group_size": 32, "bits": 3, "learning_rate": 1e-3}


@pytest.fixture
def rows() -> Tensor:
    return torch.randint(3, 512, (6, 24), generator=torch.Generator().manual_seed(0))


def begun_both(folder: Path, rows: Tensor, **fields: object) -> Iterator[DLQAT]:
    for streamed in (False, True):
        model = load("toy", dtype=torch.float32, streamed=streamed).model
        texts = {"calibration": rows[2:5], "heldout": rows[5:]}
        yield begun(model, folder / str(streamed), rows[:4], **texts, **FIELDS | fields)


def results(qat: DLQAT) -> dict[str, Tensor]:
    """Return all numbers of a finished run: layers, held-out losses, logits and errors."""
    finished(qat)
    model, numbers = qat.run.model, dict[str, Tensor]()
    for stage in qat.stages:
        if stage != "lora":
            for name, layer in qat.converted(stage).items():
                numbers |= {f"{stage} {name} {part}": x for part, x in layer.tensors().items()}
        losses = qat.heldout_losses(stage, QUIET)
        with qat.installed(stage), all_resident(model), torch.no_grad():
            numbers |= {f"{stage} logits": model(input_ids=qat.run.heldout).logits}
        numbers[f"{stage} losses"] = torch.tensor(losses)
    errors = qat.audit(QUIET)
    return numbers | {f"{stage} error": torch.tensor(error) for stage, error in errors.items()}


@pytest.mark.parametrize(
    "fields",
    [
        {"stages": STAGES},
        {"stages": "block-wise, dlqat", "start": "block-wise", "grid": "offset"},
        {"stages": "dlqat", "start": "rounded", "checkpointing": True},
        {"stages": "dlqat, m-only", "keep_zeros": True, "exclude": "0.*"},
    ],
    ids=["every stage", "block-wise start", "rounded start", "zeros kept"],
)
def test_a_streamed_run_equals_one_in_memory(tmp_path: Path, rows: Tensor, fields: dict) -> None:
    whole, streamed = (results(qat) for qat in begun_both(tmp_path, rows, **fields))
    assert whole.keys() == streamed.keys()
    assert [name for name, x in whole.items() if not torch.equal(x, streamed[name])] == []


def test_training_holds_the_starts_and_no_other_weights(
    tmp_path: Path, rows: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, qat = begun_both(tmp_path, rows, stages="dlqat")
    backward, seen = StageTrainer.backward, list[tuple[bool, bool]]()

    def observed(trainer: StageTrainer) -> float:
        layers = [x for x in trainer.run.model.modules() if isinstance(x, DLQATLinear)]
        held = [*decoder_blocks(trainer.run.model).named_parameters()]
        dense = [x for name, x in held if name.endswith("base.weight")]
        seen.append((all(x.is_meta for x in dense), len(dense) == len(layers) == 21))
        seen.append((all(not x.is_meta for n, x in held if "norm" in n), True))
        return backward(trainer)

    monkeypatch.setattr(StageTrainer, "backward", observed)
    finished(qat)
    assert seen and {*seen} == {(True, True)}
