"""SparseGPT and Wanda of llm-compressor, for `benchmarks.pruning`. Needs no Slimscope."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier
from torch import Tensor
from transformers import AutoTokenizer

MODIFIERS = {"sparsegpt": SparseGPTModifier, "wanda": WandaPruningModifier}


def prune(model: Any, folder: Path, rows: Tensor, method: str, pattern: str) -> Any:
    """`model`, which was loaded from `folder`, pruned on token ids [segments, L]."""
    structured = ":" in pattern
    recipe = MODIFIERS[method](
        sparsity=0.5 if structured else float(pattern.rstrip("%")) / 100,
        mask_structure=pattern if structured else "0:0",
        ignore=["re:.*lm_head"],
    )
    ids = {"input_ids": rows.tolist(), "attention_mask": torch.ones_like(rows).tolist()}
    return oneshot(
        model=model,
        tokenizer=AutoTokenizer.from_pretrained(folder),
        dataset=Dataset.from_dict(ids),
        recipe=recipe,
        num_calibration_samples=len(rows),
        max_seq_length=rows.shape[1],
    )
