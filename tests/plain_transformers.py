"""What anyone would do with models: load a folder, compute the perplexity of token ids [rows,
length] and the share of zeros among the weights of linear layers, and save the logits if wanted.
Imports nothing of Slimscope."""

import math
import sys

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, CompressedTensorsConfig


def answer(
    folder: str, ids: list[list[int]], logits: str = "", dequantize: bool = False
) -> dict[str, float]:
    given = {"quantization_config": CompressedTensorsConfig(dequantize=True)} if dequantize else {}
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **given)
    rows = torch.tensor(ids)
    with torch.no_grad():
        if logits:
            save_file({"logits": model(input_ids=rows).logits.float().contiguous()}, logits)
        losses = [model(input_ids=row[None], labels=row[None]).loss.item() for row in rows]
    weights = [w for name, w in model.named_parameters() if name.endswith("_proj.weight")]
    zeros, count = sum((w == 0).sum().item() for w in weights), sum(w.numel() for w in weights)
    assert not {"backend", "jobs"} & set(sys.modules)
    return {"perplexity": math.exp(sum(losses) / len(losses)), "zero_share": zeros / max(1, count)}
