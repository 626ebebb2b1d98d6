"""Quantizers that round in other bases, or layer by layer, in a run on the toy."""

from __future__ import annotations

import pytest
from torch import Tensor

from backend.calibration.second_moments import InputCollector, StatisticsLevel
from backend.models.blocks import block_linears
from backend.models.patching import swap_weights
from backend.quantization.config import DLQATConfig
from backend.quantization.registry import QUANTIZERS
from tests.quantization.dlqat.runs import QUIET, begun, finished

NAMES = ("gptq-order", "hqq", "awq", "rotated", "rotated-gptq")
FIELDS = {"group_size": 32, "grid": "offset", "space": "minmax", "stored": "float32"}


def test_every_quantizer_comes_back_to_the_model_it_began_with(
    toy, calibration: Tensor, tmp_path
) -> None:
    """At 8 bits next to nothing is lost, whatever the basis."""
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
        with swap_weights(before), InputCollector(step, StatisticsLevel.GRAM) as seen:
            model(input_ids=calibration[:8, :64])
            inputs = seen.finish()
        for module, linear in step.items():
            W, grid = QUANTIZERS["gptq-order"].quantize(
                linear.read(), inputs[module], qat.run.plan.groups[0], 0.01
            )
            found, wanted = layers[linear.name].codes.float(), grid.codes(W)
            assert (found == wanted).float().mean() > 0.99  # sums in another order
            before[linear.layer.get_parameter("weight")] = grid.nearest(W)


@pytest.mark.parametrize("name", ["rotated", "rotated-gptq"])
def test_rotation_cannot_keep_zeros(name: str) -> None:
    with pytest.raises(ValueError, match="mixes weights"):
        DLQATConfig.model_validate({"keep_zeros": True, "stages": name})
