"""A model built as loading builds it, from the headers of its files alone: on PyTorch's meta device
tensors have shapes and no values. So transformers' own checks refuse a folder before a run is
queued: of config and generation config, activations, rotary positions, names and shapes of tensors,
and of the tokenizer.

It runs in a limited child process (see `sources.limited`), since config and tokenizer are a
stranger's. No other process imports it: it needs torch."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.utils import GENERATION_CONFIG_NAME, logging

from backend.models.blocks import all_finite
from backend.models.facts import DTYPES
from backend.models.loading import (
    CONFIG_REMEDY,
    check_complete,
    load_tokenizer,
    not_finite,
    refusing,
)
from backend.models.sources.catalog import dense_headers, folder_facts
from backend.models.sources.headers import OPTIONS

META = "meta"
FREQUENCIES = "inv_freq"


def check_construction(path: Path) -> None:
    """Check that loading can build the model in the folder of the file `path`. Raises ModelError:
    it cannot; `why` says what transformers says."""
    folder = path.parent
    facts = folder_facts(str(folder), folder)
    logging.disable_progress_bar()
    load_tokenizer(folder, facts)
    with refusing(facts):
        config = AutoConfig.from_pretrained(folder, **OPTIONS)
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        if (folder / GENERATION_CONFIG_NAME).is_file():
            GenerationConfig.from_pretrained(folder, **OPTIONS)
        model, missing = _built(folder, config)
    check_complete(facts, missing)
    with refusing(facts, "Its rotary positions cannot be computed", CONFIG_REMEDY):
        finite = _has_finite_frequencies(model)
    if not finite:
        raise not_finite(facts)


def _built(folder: Path, config: Any) -> tuple[PreTrainedModel, Collection[str]]:
    """The model, and the names of weights that its files do not have."""
    tensors = {
        name: torch.empty(
            header.shape,
            dtype=getattr(torch, DTYPES.get(header.dtype, "int64")),
            device=META,
        )
        for name, header in dense_headers(str(folder), folder).items()
    }
    auto: Any = AutoModelForCausalLM
    with torch.device(META):
        kind = type(auto.from_config(config, trust_remote_code=False))
    model, report = kind.from_pretrained(
        None,
        config=config,
        state_dict=tensors,
        device_map=META,
        dtype=torch.float32,
        output_loading_info=True,
    )
    return model, report["missing_keys"]


def _has_finite_frequencies(model: PreTrainedModel) -> bool:
    """Build the modules of rotary positions again, with values; they are small."""
    names = [name for name, _ in model.named_buffers() if name.endswith(FREQUENCIES)]
    owners = {model.get_submodule(name.rpartition(".")[0]) for name in names}
    again: list[Any] = [type(owner)(owner.config) for owner in owners if hasattr(owner, "config")]
    return all(all_finite(buffer) for module in again for buffer in module.buffers())
