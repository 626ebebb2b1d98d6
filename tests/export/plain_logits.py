"""What anyone would do with an exported model: `python plain_logits.py FOLDER OUT [dequantize]
< token-ids.json`. Imports nothing of Slimscope; saves the logits."""

import json
import sys

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, CompressedTensorsConfig


def main() -> None:
    folder, out, *more = sys.argv[1:]
    given = {"quantization_config": CompressedTensorsConfig(dequantize=True)} if more else {}
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **given)
    torch.set_num_threads(1)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor(json.load(sys.stdin))).logits
    save_file({"logits": logits.float().contiguous()}, out)
    assert not {"backend", "jobs"} & set(sys.modules)


if __name__ == "__main__":
    main()
