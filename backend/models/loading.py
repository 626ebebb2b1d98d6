"""Loading and fingerprinting of causal LMs. A loaded model computes the same values as one loaded
by plain `from_pretrained`. Code from model repositories is never run, and pickled weights are never
loaded."""

import hashlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import GENERATION_CONFIG_NAME, logging

from backend.errors import ModelError, SlimscopeError
from backend.models.block_forward import after_blocks, open_stream, run_block
from backend.models.block_offload import is_streamed, iterate_parameters, stream_from
from backend.models.blocks import all_finite
from backend.models.devices import device_memory
from backend.models.facts import ModelFacts
from backend.models.families.experts import split_experts
from backend.models.families.support import unsupported
from backend.models.memory import is_out_of_memory, memory_parts
from backend.models.sources.cache import Say, silent
from backend.models.sources.catalog import file_state, inspect, materialize
from backend.models.sources.headers import OPTIONS, exclusive_construction
from backend.models.sources.spec import adapter_error
from backend.models.sources.tokenizer import check_token_ids

CHECK_TOKENS = 8  # length of the forward pass that checks a model
CONFIG_REMEDY = (
    "Check config.json against the original model's, such as rope_theta and rms_norm_eps."
)


@dataclass(frozen=True)
class LoadedModel:
    """A model in eval mode, with its facts and the folder of its tokenizer."""

    model: PreTrainedModel
    facts: ModelFacts
    folder: Path

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, loaded into this process."""
        return load_tokenizer(self.folder, self.facts)

    @property
    def saved_dtype(self) -> torch.dtype:
        """The dtype of the model's files, also used to save a compressed model."""
        dtype: torch.dtype = getattr(torch, self.facts.saved_dtype)
        return dtype


def load(
    spec: str,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    say: Say = silent,
    streamed: bool = False,
    with_tokenizer: bool = True,
) -> LoadedModel:
    """Load a model in eval mode, with the key-value cache disabled.

    Args:
        spec: the model spec; see `sources.spec`.
        device: device of the weights.
        dtype: dtype of the weights; None: float32 on the CPU, the stored dtype elsewhere.
        say: called with a message before each slow step.
        streamed: keep only one decoder block in memory, plus the parameters outside the blocks.
        with_tokenizer: also load the tokenizer into this process.

    Raises:
        ModelError: the model is unavailable, unsupported, damaged, or too large for the memory.
    """
    facts = inspect(spec)
    if streamed and facts.support.stream:
        raise unsupported(
            facts.title,
            facts.support.stream,
            "cannot be read block by block",
            "Choose a model that fits into memory.",
        )
    dtype = dtype or (torch.float32 if device == "cpu" else getattr(torch, facts.dtype))
    needed = memory_parts(facts, dtype=str(dtype).removeprefix("torch."), streamed=streamed)
    device_memory(device).require(needed, facts.title)
    folder = materialize(spec, say)
    facts = inspect(spec)  # repeated, since the prepared folder has more precise facts
    if (
        with_tokenizer
    ):  # loaded first, so that an error is reported before the slow loading of weights
        load_tokenizer(folder, facts)
    model = _load_model(folder, facts, dtype, device, streamed)
    model.config.use_cache = False
    return check_loaded(model, facts, folder)


@torch.no_grad()
def check_loaded(model: PreTrainedModel, facts: ModelFacts, folder: Path) -> LoadedModel:
    """Run a short forward pass and return the loaded model if its logits are finite.

    Finite weights produce non-finite logits under an invalid config, such as a norm with a negative
    epsilon. Rotary frequencies are checked separately, because PyTorch's attention ignores NaN
    scores. Only the first block of a streamed model is run; the other blocks share its config.
    Raises ModelError: the model cannot be run, or its logits are not finite."""
    stride = facts.vocabulary // CHECK_TOKENS
    ids = torch.arange(min(CHECK_TOKENS, facts.context))[None] * stride
    with as_model_error(facts, f"A forward pass over {ids.numel()} tokens fails", CONFIG_REMEDY):
        if is_streamed(model):
            stream = open_stream(model, ids, 1)
            (hidden,) = run_block(model, stream, 0, stream.hidden)
            logits = after_blocks(model, ids.to(model.device), hidden)
        else:
            logits = model(input_ids=ids.to(model.device), use_cache=False).logits
    frequencies = [buffer for name, buffer in model.named_buffers() if name.endswith("inv_freq")]
    if not all(map(all_finite, [logits, *frequencies])):
        raise not_finite_error(facts)
    return LoadedModel(model, facts, folder)


def not_finite_error(facts: ModelFacts) -> ModelError:
    """Return the error for a model with finite weights and non-finite results."""
    why = "Its logits or rotary frequencies are not finite, though its weights are."
    return load_error(facts, why, CONFIG_REMEDY)


def check_complete(facts: ModelFacts, missing: Collection[str]) -> None:
    """Raise `ModelError` if parameters are `missing` in the files."""
    if missing:
        raise load_error(
            facts,
            f"{len(missing)} of its weights are missing, such as {min(missing)}.",
            "Download the model again.",
        )


@exclusive_construction
def _load_model(
    folder: Path, facts: ModelFacts, dtype: torch.dtype, device: str, streamed: bool
) -> PreTrainedModel:
    logging.disable_progress_bar()
    load_weights = _load_streamed if streamed else _load_full
    with as_model_error(facts):
        model, missing = load_weights(folder, dtype, torch.device(device))
    check_complete(facts, missing)
    if getattr(model, "_hf_peft_config_loaded", False):
        raise adapter_error(folder)  # it was added after the folder was inspected
    if not streamed:
        for _ in iterate_parameters(model):
            pass  # the iterator raises an error for non-finite values
    if facts.support.mixture and not facts.support.compress:
        split_experts(model)
    return model.eval()


@contextmanager
def as_model_error(
    facts: ModelFacts,
    failure: str = "transformers cannot read it",
    do: str = "Check that the folder is complete and the architecture is supported.",
) -> Iterator[None]:
    """Convert exceptions of the body into `ModelError`: transformers can raise any exception for
    malformed files. Errors of Slimscope and out-of-memory errors are passed on.

    Args:
        facts: facts of the model.
        failure: first part of the reason, before the message of the exception.
        do: the remedy.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, SlimscopeError) or is_out_of_memory(error):
            raise
        reason = f"unknown key {error}" if isinstance(error, KeyError) else error
        raise load_error(facts, f"{failure}: {reason}.", do) from error


def load_tokenizer(folder: Path, facts: ModelFacts) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model folder. The most recent tokenizer is cached until a file of its
    folder changes. Raises ModelError: the tokenizer is missing, damaged, or has tokens without an
    embedding."""
    do = "Copy the tokenizer of the original model."
    with as_model_error(facts, "transformers cannot read its tokenizer", do):
        tokenizer, largest = _read_tokenizer(folder, file_state(folder))
    check_token_ids(folder, largest, facts.vocabulary)
    return tokenizer


@lru_cache(maxsize=1)
def _read_tokenizer(folder: Path, state: tuple[object, ...]) -> tuple[PreTrainedTokenizerBase, int]:
    """Load a tokenizer, and return it with its largest id that is not a special token. `state` is
    part of the cache key."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, **OPTIONS)
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    ids = set(tokenizer.get_vocab().values()) - special
    tokenizer.decode(tokenizer.encode("A text."))  # fails for some invalid configs
    return tokenizer, max(ids, default=-1)


def _load_full(
    folder: Path, dtype: torch.dtype, device: torch.device
) -> tuple[PreTrainedModel, Collection[str]]:
    auto: Any = AutoModelForCausalLM
    # tensors go from the files straight to the device, not through the memory of the host
    placement = {} if device.type == "cpu" else {"device_map": {"": str(device)}}
    model, report = auto.from_pretrained(
        folder, dtype=dtype, use_safetensors=True, output_loading_info=True, **placement, **OPTIONS
    )
    return model, report["missing_keys"]


def _load_streamed(
    folder: Path, dtype: torch.dtype, device: torch.device
) -> tuple[PreTrainedModel, Collection[str]]:
    auto: Any = AutoModelForCausalLM
    config = AutoConfig.from_pretrained(folder, **OPTIONS)
    with init_empty_weights(include_buffers=False):  # buffers are not in the files
        model = auto.from_config(config, dtype=dtype, trust_remote_code=False)
    if (folder / GENERATION_CONFIG_NAME).is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder, **OPTIONS)
    return model, stream_from(folder, model, device)


def load_error(facts: ModelFacts, why: str, do: str) -> ModelError:
    """Return the error for a model that cannot be loaded."""
    return ModelError(f"{facts.title} cannot be loaded.", why, do, field="model")


@torch.no_grad()
def weights_hash(model: PreTrainedModel, dtype: torch.dtype | None = None) -> str:
    """Return the hex sha256 over the names, dtypes, shapes and bytes of all parameters, in the
    model's order.

    With `dtype`, values are converted first: in float32, a model has the same hash whether its
    weights are loaded in 16 or 32 bits. Raises ModelError: a parameter has non-finite values."""
    digest = hashlib.sha256()
    for name, parameter in iterate_parameters(model):
        digest.update(f"{name} {dtype or parameter.dtype} {list(parameter.shape)}\n".encode())
        flat = parameter.to(dtype or parameter.dtype).cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()
