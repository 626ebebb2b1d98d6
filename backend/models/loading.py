"""Loading, saving and fingerprinting a causal LM.

The same numbers as plain `AutoModelForCausalLM.from_pretrained(folder, dtype=...)`: nothing is
patched. Code from a model's repository is never run, and pickled weights are never opened.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from backend.errors import ModelRefused
from backend.models.catalogue import inspect
from backend.models.estimate import memory_available, memory_needed, refuse_beyond
from backend.models.facts import ModelFacts
from backend.models.prepared import Say, silent
from backend.models.sources import materialise


@dataclass(frozen=True)
class LoadedModel:
    """A model in eval mode, its tokenizer, and its facts."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    facts: ModelFacts


def load(
    spec: str,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    say: Say = silent,
) -> LoadedModel:
    """Loads the model `spec` names, without dropout and without a key-value cache.

    Args:
        dtype: of the weights; None: float32 on the CPU, as stored elsewhere.
        say: called with a line when something is about to take long.

    Raises:
        ModelRefused: not to be had, not treatable, too big for the memory, or damaged.
    """
    facts = inspect(spec)
    dtype = dtype or (torch.float32 if device == "cpu" else getattr(torch, facts.dtype))
    if device == "cpu":
        needed = memory_needed(facts, dtype=str(dtype).removeprefix("torch."))
        refuse_beyond(needed, memory_available(), facts.title)
    folder = materialise(spec, say)
    facts = inspect(spec)  # again: a model that was just set up is known better now
    model, tokenizer = _read(folder, facts, dtype, device)
    _refuse_not_finite(model, facts)
    model.config.use_cache = False
    return LoadedModel(model, tokenizer, facts)


def _read(
    folder: Path, facts: ModelFacts, dtype: torch.dtype, device: str
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    logging.disable_progress_bar()
    auto: Any = AutoModelForCausalLM
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        model, report = auto.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, output_loading_info=True, **options
        )
    except (OSError, ValueError, RuntimeError, KeyError, ImportError, AttributeError) as error:
        why = f"transformers cannot read it: {error}."
        raise _refused(
            facts, why, "Check that the folder is complete and of a known kind."
        ) from error
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        why = f"{len(missing)} of its weights are missing, such as {missing[0]}."
        raise _refused(facts, why, "Fetch the model again.")
    return model.to(device).eval(), tokenizer


@torch.no_grad()
def _refuse_not_finite(model: PreTrainedModel, facts: ModelFacts) -> None:
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise _refused(facts, f"{name} holds values that are not finite.", "Fetch it again.")


def _refused(facts: ModelFacts, why: str, do: str) -> ModelRefused:
    return ModelRefused(f"{facts.title} cannot be loaded.", why, do, field="model")


def save(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, card: str
) -> None:
    """Writes a folder that transformers loads: safetensors, config, tokenizer, README.md.

    The saved config allows the key-value cache again, which other programs expect.
    """
    before, model.config.use_cache = model.config.use_cache, True
    try:
        model.save_pretrained(folder)
    finally:
        model.config.use_cache = before
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(card, encoding="utf-8")


@torch.no_grad()
def weights_hash(model: PreTrainedModel) -> str:
    """Hex sha256 over name, dtype, shape and bytes of every parameter, in the model's order."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(f"{name} {parameter.dtype} {list(parameter.shape)}\n".encode())
        flat = parameter.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()
