"""Loading and hashing of causal LMs. Loaded models compute exactly what plain `from_pretrained`
gives. Code from model repositories is never run, and pickled weights are never loaded."""

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
from backend.models.facts import ModelFacts
from backend.models.families.experts import split_experts
from backend.models.families.support import unsupported
from backend.models.memory import check_memory, is_out_of_memory, memory_available, memory_parts
from backend.models.sources.cache import Say, silent
from backend.models.sources.catalog import inspect, materialize, stamp
from backend.models.sources.headers import OPTIONS, alone
from backend.models.sources.spec import adapter_error
from backend.models.sources.tokenizer import check_ids

CHECKED_TOKENS = 8  # tokens in the forward pass that checks a model
CONFIG_REMEDY = (
    "Check config.json against the original model's, such as rope_theta and rms_norm_eps."
)


@dataclass(frozen=True)
class LoadedModel:
    """A model in eval mode, its facts, and the folder with its tokenizer."""

    model: PreTrainedModel
    facts: ModelFacts
    folder: Path

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, loaded into this process."""
        return load_tokenizer(self.folder, self.facts)

    @property
    def stored(self) -> torch.dtype:
        """Dtype of the model's files and of models made from it."""
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
    """Load a model in eval mode, with its key-value cache turned off.

    Args:
        spec: name or path of the model.
        device: device of the weights.
        dtype: dtype of the weights; None: float32 on the CPU, the stored dtype on other devices.
        say: called with a message before a slow step.
        streamed: keep only one decoder block in memory at a time, plus everything outside the
            blocks.
        with_tokenizer: load the tokenizer into this process, too.

    Raises:
        ModelError: the model is not available, not supported, too large for the memory, or damaged.
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
    if device == "cpu":
        needed = memory_parts(facts, dtype=str(dtype).removeprefix("torch."), streamed=streamed)
        check_memory(needed, memory_available(), facts.title)
    folder = materialize(spec, say)
    facts = inspect(spec)  # after the download, the facts are more precise
    if with_tokenizer:  # before the weights, which take longer
        load_tokenizer(folder, facts)
    model = _load_checked(folder, facts, dtype, device, streamed)
    model.config.use_cache = False
    return check_loaded(model, facts, folder)


@torch.no_grad()
def check_loaded(model: PreTrainedModel, facts: ModelFacts, folder: Path) -> LoadedModel:
    """Check a model by a short forward pass, and return it as a `LoadedModel`.

    The logits have to be finite: a wrong config, such as a negative epsilon of a norm, makes them
    non-finite even if all weights are finite. Rotary frequencies are checked as well, because
    PyTorch's attention ignores scores that are NaN. Only the first block of a streamed model runs;
    all blocks have the same config.

    Raises:
        ModelError: the forward pass fails, or its logits are not finite.
    """
    stride = facts.vocabulary // CHECKED_TOKENS
    ids = torch.arange(min(CHECKED_TOKENS, facts.context))[None] * stride
    with model_errors(facts, f"A forward pass over {ids.numel()} tokens fails", CONFIG_REMEDY):
        if is_streamed(model):
            stream = open_stream(model, ids, 1)
            (hidden,) = run_block(model, stream, 0, stream.hidden)
            logits = after_blocks(model, ids.to(model.device), hidden)
        else:
            logits = model(input_ids=ids.to(model.device), use_cache=False).logits
    frequencies = [x for name, x in model.named_buffers() if name.endswith("inv_freq")]
    if not all(map(all_finite, [logits, *frequencies])):
        raise not_finite(facts)
    return LoadedModel(model, facts, folder)


def not_finite(facts: ModelFacts) -> ModelError:
    """Build the error for a model with finite weights whose config makes the results non-finite."""
    why = "Its logits or rotary frequencies are not finite, though its weights are."
    return unloadable(facts, why, CONFIG_REMEDY)


def check_complete(facts: ModelFacts, missing: Collection[str]) -> None:
    """Raise `ModelError` if weights are missing."""
    if missing:
        raise unloadable(
            facts,
            f"{len(missing)} of its weights are missing, such as {min(missing)}.",
            "Download the model again.",
        )


@alone
def _load_checked(
    folder: Path, facts: ModelFacts, dtype: torch.dtype, device: str, streamed: bool
) -> PreTrainedModel:
    logging.disable_progress_bar()
    load_model = _load_streamed if streamed else _load_in_memory
    with model_errors(facts):
        model, missing = load_model(folder, dtype, torch.device(device))
    check_complete(facts, missing)
    if getattr(model, "_hf_peft_config_loaded", False):
        raise adapter_error(folder)  # an adapter was added after the folder was inspected
    for _ in iterate_parameters(model) if not streamed else ():
        pass  # raises an error for non-finite values
    if facts.support.mixture and not facts.support.compress:
        split_experts(model)
    return model.eval()


@contextmanager
def model_errors(
    facts: ModelFacts,
    what: str = "transformers cannot read it",
    do: str = "Check that the folder is complete and the architecture is supported.",
) -> Iterator[None]:
    """Convert errors into a `ModelError`: for malformed files, transformers raises errors of many
    types. Slimscope's own errors and out-of-memory errors pass unchanged.

    Args:
        facts: model to name in the error.
        what: failed action, in the error's reason.
        do: remedy.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, SlimscopeError) or is_out_of_memory(error):
            raise
        reason = f"unknown value {error}" if isinstance(error, KeyError) else error
        raise unloadable(facts, f"{what}: {reason}.", do) from error


def load_tokenizer(folder: Path, facts: ModelFacts) -> PreTrainedTokenizerBase:
    """Load the tokenizer in a model's folder. The last one is cached until a file changes. Raises
    ModelError: the tokenizer is missing or damaged, or has tokens without an embedding."""
    remedy = "Copy the tokenizer of the original model."
    with model_errors(facts, "transformers cannot read its tokenizer", remedy):
        tokenizer, largest_id = _read_tokenizer(folder, stamp(folder))
    check_ids(folder, largest_id, facts.vocabulary)
    return tokenizer


@lru_cache(maxsize=1)
def _read_tokenizer(
    folder: Path, file_stamp: tuple[object, ...]
) -> tuple[PreTrainedTokenizerBase, int]:
    """Load and test a tokenizer; also return its largest id of a token that is not special."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, **OPTIONS)
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    ids = set(tokenizer.get_vocab().values()) - special
    tokenizer.decode(tokenizer.encode("A text."))  # fails for some damaged configs
    return tokenizer, max(ids, default=-1)


def _load_in_memory(
    folder: Path, dtype: torch.dtype, device: torch.device
) -> tuple[PreTrainedModel, Collection[str]]:
    auto: Any = AutoModelForCausalLM
    model, report = auto.from_pretrained(
        folder, dtype=dtype, use_safetensors=True, output_loading_info=True, **OPTIONS
    )
    return model.to(device), report["missing_keys"]


def _load_streamed(
    folder: Path, dtype: torch.dtype, device: torch.device
) -> tuple[PreTrainedModel, Collection[str]]:
    auto: Any = AutoModelForCausalLM
    config = AutoConfig.from_pretrained(folder, **OPTIONS)
    with init_empty_weights(include_buffers=False):  # buffers are computed, not stored
        model = auto.from_config(config, dtype=dtype, trust_remote_code=False)
    if (folder / GENERATION_CONFIG_NAME).is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder, **OPTIONS)
    return model, stream_from(folder, model, device)


def free_memory(device: str | torch.device) -> int:
    """Bytes that can still be allocated on `device`."""
    device = torch.device(device)
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else memory_available()


def unloadable(facts: ModelFacts, why: str, do: str) -> ModelError:
    """Build the error for a model that cannot be loaded."""
    return ModelError(f"{facts.title} cannot be loaded.", why, do, field="model")


@torch.no_grad()
def weights_hash(model: PreTrainedModel) -> str:
    """Compute the hex sha256 over name, dtype, shape and bytes of every parameter, in the model's
    order. Raises ModelError: a parameter has non-finite values."""
    digest = hashlib.sha256()
    for name, parameter in iterate_parameters(model):
        digest.update(f"{name} {parameter.dtype} {list(parameter.shape)}\n".encode())
        flat = parameter.cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()
