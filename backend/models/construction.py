"""Check of a model folder before a run is queued, by building the model without its weights.

The model is built from the headers of its files on PyTorch's meta device, where tensors have shapes
but no values. Thereby transformers itself checks the config, the generation config, activations,
rotary positions, names and shapes of tensors, and the tokenizer.

Runs in a restricted child process (see `backend.limited`), because config and tokenizer are
untrusted. Other processes must not import this module, which imports torch."""

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
    model_errors,
    not_finite,
    unloadable,
)
from backend.models.sources.catalog import dense_headers, folder_facts
from backend.models.sources.headers import OPTIONS
from backend.models.sources.tokenizer import FAST_FILE

META = "meta"
FREQUENCIES = "inv_freq"
ACTIVATIONS = ("hidden_act", "hidden_activation", "activation_function")


def check_construction(path: Path) -> None:
    """Check that the model in the folder of the file `path` can be built. Raises ModelError: it
    cannot be built; `why` has the message of transformers."""
    folder = path.parent
    facts = folder_facts(str(folder), folder)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with model_errors(facts, "transformers cannot read its config", CONFIG_REMEDY):
        config = AutoConfig.from_pretrained(folder, **OPTIONS)
    with model_errors(facts, "transformers cannot read its generation config"):
        _check_generation(folder)
    _check_activations(facts, config)
    if (folder / FAST_FILE).exists():  # converting another tokenizer may take minutes
        load_tokenizer(folder, facts)
    with model_errors(facts):
        model, report = _build(folder, config)
    check_complete(facts, report["missing_keys"])
    for name, actual, expected in sorted(report["mismatched_keys"]):
        why = f"{name} has the shape {[*actual]}; its config.json specifies {[*expected]}."
        raise unloadable(facts, why, CONFIG_REMEDY)
    with model_errors(facts, "Its rotary positions cannot be computed", CONFIG_REMEDY):
        is_finite = _has_finite_frequencies(model)
    if not is_finite:
        raise not_finite(facts)


def _check_generation(folder: Path) -> None:
    """Read the generation config. Raises ValueError: end-of-text ids are not integers."""
    if not (folder / GENERATION_CONFIG_NAME).is_file():
        return
    end_ids = GenerationConfig.from_pretrained(folder, **OPTIONS).eos_token_id
    id_list = end_ids if isinstance(end_ids, list) else [end_ids]
    if end_ids is not None and any(type(end_id) is not int for end_id in id_list):
        raise ValueError(f"its eos_token_id is {str(end_ids)[:80]}")


def _check_activations(facts: ModelFacts, config: Any) -> None:
    """Check the names of activations: the error of transformers contains only the name."""
    for key in ACTIVATIONS:
        name = getattr(config, key, None)
        if isinstance(name, str) and name not in ACT2FN:
            why = f"Its config.json has the {key} {name[:80]!r}, which transformers does not know."
            raise unloadable(facts, why, CONFIG_REMEDY)


def _build(folder: Path, config: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Build the model on the meta device; also return transformers' report on its tensors."""
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
        ignore_mismatched_sizes=True,  # the report names the tensors, the error does not
        output_loading_info=True,
    )
    return model, report


def _has_finite_frequencies(model: PreTrainedModel) -> bool:
    """Return True if all rotary frequencies are finite. Builds their modules again with values;
    they are small."""
    names = [name for name, _ in model.named_buffers() if name.endswith(FREQUENCIES)]
    modules = {model.get_submodule(name.rpartition(".")[0]) for name in names}
    rebuilt: list[Any] = [
        type(module)(module.config) for module in modules if hasattr(module, "config")
    ]
    return all(all_finite(buffer) for module in rebuilt for buffer in module.buffers())
