"""Quantizers that round in other bases, or layer by layer, in a run on the toy."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import Tensor
from transformers import PreTrainedModel

from backend.calibration.second_moments import InputCollector, StatisticsLevel
from backend.checkpoints import Checkpoints
from backend.models.blocks import block_linears
from backend.models.patching import swap_weights
from backend.quantization.dlqat.config import DLQATConfig
from backend.quantization.dlqat.pipeline import DLQAT
from backend.quantization.registry import QUANTIZERS
from backend.reporter import SilentReporter

NAMES = ("gptq-order", "hqq", "awq", "rotated", "rotated-gptq")
ALONE = dict.fromkeys(("gptq", "lora", "rtn", "text_loss"), False)
QUIET = SilentReporter()


def made(model: PreTrainedModel, text: Tensor, folder: Path, **fields: object) -> DLQAT:
    """A run whose quantizers have worked."""
    config = DLQATConfig.model_validate(
        {"group_size": 32, "grid": "offset", "precision": "float32", "space": "minmax",
         "stored": "float32", **ALONE, **fields}
    )  # fmt: skip
    rows = text[:2, :32]
    qat = DLQAT(model, text[:8, :64], rows, rows, config, Checkpoints(folder))
    for stage in qat.prepare(QUIET):
        qat.make(stage, QUIET)
    return qat


def test_every_quantizer_comes_back_to_the_model_it_began_with(
    toy, calibration: Tensor, tmp_path: Path
) -> None:
    """At 8 bits next to nothing is lost, whatever the basis."""
    qat = made(toy(), calibration, tmp_path, bits=8, quantizers=", ".join(NAMES))
    assert sorted(qat.stages) == sorted(NAMES)
    for stage in NAMES:
        layers = qat.converted(stage)
        assert all(x.basis.plain for x in layers.values()) == (stage in ("gptq-order", "hqq"))
    assert max(qat.audit(QUIET).values()) < 1e-4


def test_gptq_in_order_quantizes_every_layer_on_what_those_before_it_give(
    toy, calibration: Tensor, tmp_path: Path
) -> None:
    qat = made(toy(), calibration, tmp_path, bits=3, quantizers="gptq-order")
    model, linears = qat.run.model, block_linears(qat.run.model, 0)
    layers = qat.converted("gptq-order")
    order = (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",))
    before: dict[Tensor, Tensor] = {}
    for names in order:
        step = {m: x for m, x in linears.items() if m.endswith(names)}
        with swap_weights(before), InputCollector(step, StatisticsLevel.GRAM) as seen:
            model(input_ids=calibration[:8, :64])
            inputs = seen.finish()
        for module, linear in step.items():
            W, grid = QUANTIZERS["gptq-order"].quantize(
                linear.read(), inputs[module], qat.run.settings, 0.01
            )
            found, wanted = layers[linear.name].codes.float(), grid.codes(W)
            assert (found == wanted).float().mean() > 0.99  # sums in another order
            before[linear.layer.get_parameter("weight")] = grid.nearest(W)


@pytest.mark.parametrize("name", ["rotated", "rotated-gptq"])
def test_rotation_cannot_keep_zeros(name: str) -> None:
    with pytest.raises(ValueError, match="mixes weights"):
        DLQATConfig.model_validate({"keep_zeros": True, "quantizers": name})
