"""Tests of models whose weights are in files of gigabytes."""

import json
import shutil

import torch
from accelerate import init_empty_weights
from transformers import AutoModelForCausalLM, LlamaConfig

from backend.limited import PARSER_BYTES
from backend.models.sources.spec import TOY_FOLDER
from backend.settings import settings
from jobs.fields.models import resolve_model

WIDTH = 512


def test_a_file_larger_than_the_memory_of_the_check_is_accepted(data_dir) -> None:
    """The check of a model maps its files, and mapped addresses count as memory."""
    rows = PARSER_BYTES // (2 * WIDTH) + 2**16
    config = LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=rows,
        hidden_size=WIDTH,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=8,
        num_key_value_heads=8,
        tie_word_embeddings=True,
    )
    folder = settings().root / "models" / "large"
    config.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TOY_FOLDER / name, folder)
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    header, end = {}, 0
    for name, tensor in model.named_parameters():
        start, end = end, end + 2 * tensor.numel()
        header[name] = {"dtype": "BF16", "shape": [*tensor.shape], "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)  # takes no space on the disk
    assert resolve_model(str(folder)).facts.parameters > PARSER_BYTES // 2
