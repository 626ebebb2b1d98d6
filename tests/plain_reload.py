"""What anyone would do with a saved model: `python plain_reload.py FOLDER < token-ids.json`.

Imports nothing of Slimscope. Prints perplexity, zeros and number of the linear weights in blocks.
"""

import json
import math
import sys

import torch
from transformers import AutoModelForCausalLM


def main() -> None:
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
    rows = torch.tensor(json.load(sys.stdin))
    with torch.no_grad():
        losses = [model(input_ids=row[None], labels=row[None]).loss.item() for row in rows]
    weights = [w for name, w in model.named_parameters() if name.endswith("_proj.weight")]
    zeros, count = sum((w == 0).sum().item() for w in weights), sum(w.numel() for w in weights)
    print(math.exp(sum(losses) / len(losses)), zeros, count)
    assert not {"backend", "jobs"} & set(sys.modules)


if __name__ == "__main__":
    main()
