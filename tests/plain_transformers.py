"""What anyone would do with exported models: `python plain_logits.py < requests`.

A request is a line of JSON: a folder, token ids, where to save the logits, whether to dequantize;
the answer is a line, too. Imports nothing of Slimscope.
"""

import json
import sys

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, CompressedTensorsConfig


def answer(folder: str, ids: list[list[int]], out: str, dequantize: bool) -> None:
    given = {"quantization_config": CompressedTensorsConfig(dequantize=True)} if dequantize else {}
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **given)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor(ids)).logits
    save_file({"logits": logits.float().contiguous()}, out)
    assert not {"backend", "jobs"} & set(sys.modules)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for line in sys.stdin:
        answer(**json.loads(line))
        print("saved", flush=True)
