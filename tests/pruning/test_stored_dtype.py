"""A pruned model keeps the dtype of its base, and figures describe the saved weights."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from backend.checkpoints import Checkpoints
from backend.models.loading import load
from backend.models.saving import save
from backend.pruning.config import SDSConfig, SDSStage
from backend.pruning.stage_store import SDSStageStore
from tests.pruning.stages import prune


@pytest.mark.parametrize(("dtype", "pruner"), [("bfloat16", "sparsegpt"), ("float16", "wanda")])
def test_saved_weights_are_the_measured_weights(
    toy, calibration: Tensor, tmp_path: Path, dtype: str, pruner: str
) -> None:
    stored, model = getattr(torch, dtype), toy()
    for parameter in model.parameters():  # dtype of a 16-bit checkpoint on the CPU
        parameter.data = parameter.data.to(stored).float()
    model.get_parameter("model.norm.weight").data[0] = 1 + 2**-20  # a norm kept in float32
    config = SDSConfig(base=pruner, redense_steps=3, adjust_steps=3, control=True)
    checkpoints = Checkpoints(tmp_path / "run")
    ids = calibration[:8, :64]
    result = prune(model, ids, config, checkpoints, stored_dtype=stored, heldout_share=0)
    store = SDSStageStore(checkpoints)
    for stage in (SDSStage.FIRST, SDSStage.CONTROL, SDSStage.SECOND, SDSStage.SDS):
        for W in store.weights(stage, 1).values():
            assert torch.equal(W.to(stored).float(), W)
    folder = tmp_path / "model"
    save(model, load("toy").tokenizer, folder, "", stored)
    saved = load_file(folder / "model.safetensors")
    linears = [W for name, W in saved.items() if "_proj" in name]
    assert {W.dtype for W in linears} == {stored}
    assert saved["model.norm.weight"].dtype == torch.float32
    zeros = sum(int((W == 0).sum()) for W in linears) / sum(W.numel() for W in linears)
    assert zeros == pytest.approx(result.zero_share[result.kept])
    assert all((W.view(-1, 4) != 0).sum(1).max() <= 2 for W in linears)
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert torch.equal(plain(input_ids=ids[:1]).logits, model(input_ids=ids[:1]).logits)
