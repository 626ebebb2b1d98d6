"""Loading and fingerprinting a causal LM, with the numbers of plain `from_pretrained`. Code from
model repositories is never run, and pickled weights are never loaded."""

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

CHECKED_TOKENS = 8  # tokens of the pass that checks a model
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
        """The tokenizer, which works in this process."""
        return load_tokenizer(self.folder, self.facts)

    @property
    def stored(self) -> torch.dtype:
        """The dtype of the model's files, in which what is made of it is saved, too."""
        dtype: torch.dtype = getattr(torch, self.facts.saved_dtype)
        return dtype


def load(
    spec: str,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    say: Say = silent,
    streamed: bool = False,
    reads: bool = True,
) -> LoadedModel:
    """Load the model `spec`, in eval mode and without a key-value cache. `dtype`: of the weights;
    None: float32 on the CPU, as stored elsewhere. `say`: called with a message before a slow step.
    `streamed`: keep one decoder block in memory at a time, plus everything outside the blocks.
    `reads`: read the tokenizer, too, into this process. Raises ModelError: not available, not
    supported, too large for the memory, or damaged."""
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
        need = memory_parts(facts, dtype=str(dtype).removeprefix("torch."), streamed=streamed)
        check_memory(need, memory_available(), facts.title)
    folder = materialize(spec, say)
    facts = inspect(spec)  # again: setting up a model gives more precise facts
    if reads:  # before the weights, which take longer
        load_tokenizer(folder, facts)
    model = _read(folder, facts, dtype, device, streamed)
    model.config.use_cache = False
    return self_checked(model, facts, folder)


@torch.no_grad()
def self_checked(model: PreTrainedModel, facts: ModelFacts, folder: Path) -> LoadedModel:
    """The loaded model, after a short forward pass whose logits have to be finite: finite weights
    under a wrong config (a negative epsilon of a norm) give none. Rotary frequencies are looked at,
    too: attention of PyTorch leaves out scores that are not numbers. Of a streamed model only the
    first block is run; the others are of the same config. Raises ModelError: the model cannot be
    run, or its logits are not finite."""
    stride = facts.vocabulary // CHECKED_TOKENS
    ids = torch.arange(min(CHECKED_TOKENS, facts.context))[None] * stride
    with refusing(facts, f"A forward pass over {ids.numel()} tokens fails", CONFIG_REMEDY):
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
    """The error for a model whose config makes no numbers of its weights."""
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
def _read(
    folder: Path, facts: ModelFacts, dtype: torch.dtype, device: str, streamed: bool
) -> PreTrainedModel:
    logging.disable_progress_bar()
    read = _streamed if streamed else _whole
    with refusing(facts):
        model, missing = read(folder, dtype, torch.device(device))
    check_complete(facts, missing)
    if getattr(model, "_hf_peft_config_loaded", False):
        raise adapter_error(folder)  # it appeared after the folder was inspected
    for _ in iterate_parameters(model) if not streamed else ():
        pass  # raises an error for values that are not finite
    if facts.support.mixture and not facts.support.compress:
        split_experts(model)
    return model.eval()


@contextmanager
def refusing(
    facts: ModelFacts,
    what: str = "transformers cannot read it",
    do: str = "Check that the folder is complete and the architecture is supported.",
) -> Iterator[None]:
    """Turns every error but those of ours, and of memory, into one that refuses the model: on
    malformed files transformers can raise anything."""
    try:
        yield
    except Exception as error:
        if isinstance(error, SlimscopeError) or is_out_of_memory(error):
            raise
        said = f"it knows no {error}" if isinstance(error, KeyError) else error
        raise unloadable(facts, f"{what}: {said}.", do) from error


def load_tokenizer(folder: Path, facts: ModelFacts) -> PreTrainedTokenizerBase:
    """The tokenizer in the folder of a model; the same one again if it was the last to be read, and
    no file has changed. Raises ModelError: it is missing, damaged, or has tokens without an
    embedding."""
    do = "Copy the tokenizer of the original model."
    with refusing(facts, "transformers cannot read its tokenizer", do):
        tokenizer, largest = _read_tokenizer(folder, stamp(folder))
    check_ids(folder, largest, facts.vocabulary)
    return tokenizer


@lru_cache(maxsize=1)
def _read_tokenizer(
    folder: Path, stamped: tuple[object, ...]
) -> tuple[PreTrainedTokenizerBase, int]:
    """A tokenizer that has read a text, and the largest id that is not of a special token."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, **OPTIONS)
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    ids = set(tokenizer.get_vocab().values()) - special
    tokenizer.decode(tokenizer.encode("A text."))  # its config can break that
    return tokenizer, max(ids, default=-1)


def _whole(
    folder: Path, dtype: torch.dtype, device: torch.device
) -> tuple[PreTrainedModel, Collection[str]]:
    auto: Any = AutoModelForCausalLM
    model, report = auto.from_pretrained(
        folder, dtype=dtype, use_safetensors=True, output_loading_info=True, **OPTIONS
    )
    return model.to(device), report["missing_keys"]


def _streamed(
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
    """The error for a model that cannot be loaded."""
    return ModelError(f"{facts.title} cannot be loaded.", why, do, field="model")


@torch.no_grad()
def weights_hash(model: PreTrainedModel) -> str:
    """Hex sha256 over name, dtype, shape and bytes of every parameter, in the model's order. Raises
    ModelError: a parameter has non-finite values."""
    digest = hashlib.sha256()
    for name, parameter in iterate_parameters(model):
        digest.update(f"{name} {parameter.dtype} {list(parameter.shape)}\n".encode())
        flat = parameter.cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()
