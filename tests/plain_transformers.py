"""What anyone would do with models: `python plain_transformers.py < requests`.

A request is a line of JSON: a folder, token ids [rows, length], where to save their logits if
wanted, whether to dequantize. The answer is a line, too: the perplexity of the rows, and the share
of zeros among the weights of linear layers. Imports nothing of Slimscope.
"""

import json
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


if __name__ == "__main__":
    torch.set_num_threads(1)
    for line in sys.stdin:
        print(json.dumps(answer(**json.loads(line))), flush=True)
