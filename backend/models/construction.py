"""Trial construction of a model on PyTorch's meta device, where tensors have shapes but no values.

The model is built as in `loading`, but from the headers of its files. This runs transformers' own
checks before a run is queued: of the config and generation config, activations, rotary positions,
tokenizer, and the names and shapes of tensors.

The functions run in a limited child process (see `backend.limited`), because config and tokenizer
may come from a stranger. Other processes do not import this module, because it needs torch."""

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
    as_model_error,
    check_complete,
    load_error,
    load_tokenizer,
    not_finite_error,
)
from backend.models.sources.catalog import dense_headers, folder_facts
from backend.models.sources.headers import OPTIONS
from backend.models.sources.tokenizer import FAST_FILE

META = "meta"
FREQUENCY_BUFFER = "inv_freq"
ACTIVATION_KEYS = ("hidden_act", "hidden_activation", "activation_function")


def check_construction(path: Path) -> None:
    """Check that the model in the folder of the file `path` can be built. Raises ModelError: it
    cannot; `why` has the message of transformers."""
    folder = path.parent
    facts = folder_facts(str(folder), folder)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with as_model_error(facts, "transformers cannot read its config", CONFIG_REMEDY):
        config = AutoConfig.from_pretrained(folder, **OPTIONS)
    with as_model_error(facts, "transformers cannot read its generation config"):
        _check_generation(folder)
    _check_activations(facts, config)
    if (folder / FAST_FILE).exists():  # converting a slow tokenizer may take minutes
        load_tokenizer(folder, facts)
    with as_model_error(facts):
        model, report = _build_on_meta(folder, config)
    check_complete(facts, report["missing_keys"])
    for name, actual, expected in sorted(report["mismatched_keys"]):
        why = f"{name} has the shape {[*actual]}; its config.json specifies {[*expected]}."
        raise load_error(facts, why, CONFIG_REMEDY)
    with as_model_error(facts, "Its rotary positions cannot be computed", CONFIG_REMEDY):
        has_finite_frequencies = _has_finite_frequencies(model)
    if not has_finite_frequencies:
        raise not_finite_error(facts)


def _check_generation(folder: Path) -> None:
    """Read the generation config. Raises ValueError: an end-of-text id is not an integer."""
    if not (folder / GENERATION_CONFIG_NAME).is_file():
        return
    eos_token_id = GenerationConfig.from_pretrained(folder, **OPTIONS).eos_token_id
    ids = eos_token_id if isinstance(eos_token_id, list) else [eos_token_id]
    if eos_token_id is not None and any(type(id_) is not int for id_ in ids):
        raise ValueError(f"its eos_token_id is {str(eos_token_id)[:80]}")


def _check_activations(facts: ModelFacts, config: Any) -> None:
    """Raise `ModelError` for an unknown activation: the error of transformers is only its name."""
    for key in ACTIVATION_KEYS:
        name = getattr(config, key, None)
        if isinstance(name, str) and name not in ACT2FN:
            why = f"Its config.json has the {key} {name[:80]!r}, which transformers does not know."
            raise load_error(facts, why, CONFIG_REMEDY)


def _build_on_meta(folder: Path, config: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Build the model, and return it with transformers' loading report."""
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
        model_class = type(auto.from_config(config, trust_remote_code=False))
    model, report = model_class.from_pretrained(
        None,
        config=config,
        state_dict=tensors,
        device_map=META,
        dtype=torch.float32,
        ignore_mismatched_sizes=True,  # the report lists them; the error does not
        output_loading_info=True,
    )
    return model, report


def _has_finite_frequencies(model: PreTrainedModel) -> bool:
    """Build the small modules of rotary positions with real values, and check these."""
    names = [name for name, _ in model.named_buffers() if name.endswith(FREQUENCY_BUFFER)]
    meta_modules = {model.get_submodule(name.rpartition(".")[0]) for name in names}
    modules: list[Any] = [
        type(module)(module.config) for module in meta_modules if hasattr(module, "config")
    ]
    return all(all_finite(buffer) for module in modules for buffer in module.buffers())
