"""A model built as loading builds it, from the headers of its files alone: on PyTorch's meta device
tensors have shapes and no values. So transformers' own checks refuse a folder before a run is
queued: of config and generation config, activations, rotary positions, names and shapes of tensors,
and of the tokenizer.

It runs in a limited child process (see `backend.limited`), since config and tokenizer are a
stranger's. No other process imports it: it needs torch."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.utils import GENERATION_CONFIG_NAME, logging

from backend.models.blocks import all_finite
from backend.models.facts import DTYPES, ModelFacts
from backend.models.loading import (
    CONFIG_REMEDY,
    check_complete,
    load_tokenizer,
    not_finite,
    refusing,
    unloadable,
)
from backend.models.sources.catalog import dense_headers, folder_facts
from backend.models.sources.headers import OPTIONS
from backend.models.sources.tokenizer import FAST_FILE

META = "meta"
FREQUENCIES = "inv_freq"
ACTIVATIONS = ("hidden_act", "hidden_activation", "activation_function")


def check_construction(path: Path) -> None:
    """Check that loading can build the model in the folder of the file `path`. Raises ModelError:
    it cannot; `why` says what transformers says."""
    folder = path.parent
    facts = folder_facts(str(folder), folder)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with refusing(facts, "transformers cannot read its config", CONFIG_REMEDY):
        config = AutoConfig.from_pretrained(folder, **OPTIONS)
    with refusing(facts, "transformers cannot read its generation config"):
        _check_generation(folder)
    _check_activations(facts, config)
    if (folder / FAST_FILE).exists():  # others are converted, which may take minutes
        load_tokenizer(folder, facts)
    with refusing(facts):
        model, report = _built(folder, config)
    check_complete(facts, report["missing_keys"])
    for name, stored, expected in sorted(report["mismatched_keys"]):
        why = f"{name} has the shape {[*stored]}; its config.json specifies {[*expected]}."
        raise unloadable(facts, why, CONFIG_REMEDY)
    with refusing(facts, "Its rotary positions cannot be computed", CONFIG_REMEDY):
        finite = _has_finite_frequencies(model)
    if not finite:
        raise not_finite(facts)


def _check_generation(folder: Path) -> None:
    """Read the generation config. Raises ValueError: the ids that end a text are no integers."""
    if not (folder / GENERATION_CONFIG_NAME).is_file():
        return
    ends = GenerationConfig.from_pretrained(folder, **OPTIONS).eos_token_id
    each = ends if isinstance(ends, list) else [ends]
    if ends is not None and any(type(end) is not int for end in each):
        raise ValueError(f"its eos_token_id is {str(ends)[:80]}")


def _check_activations(facts: ModelFacts, config: Any) -> None:
    """transformers itself says no more than the name."""
    for key in ACTIVATIONS:
        name = getattr(config, key, None)
        if isinstance(name, str) and name not in ACT2FN:
            why = f"Its config.json has the {key} {name[:80]!r}, which transformers does not know."
            raise unloadable(facts, why, CONFIG_REMEDY)


def _built(folder: Path, config: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The model, and what transformers reports of the tensors of its files."""
    if hasattr(config, "quantization_config"):
        del config.quantization_config
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
        ignore_mismatched_sizes=True,  # the report names them, the error does not
        output_loading_info=True,
    )
    return model, report


def _has_finite_frequencies(model: PreTrainedModel) -> bool:
    """Build the modules of rotary positions again, with values; they are small."""
    names = [name for name, _ in model.named_buffers() if name.endswith(FREQUENCIES)]
    owners = {model.get_submodule(name.rpartition(".")[0]) for name in names}
    again: list[Any] = [type(owner)(owner.config) for owner in owners if hasattr(owner, "config")]
    return all(all_finite(buffer) for module in again for buffer in module.buffers())
