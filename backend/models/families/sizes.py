"""The sizes of a model by the names that configs give them. Does not import torch."""

from collections.abc import Mapping
from typing import Any

from backend.errors import ModelError

BLOCKS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
HIDDEN = ("hidden_size", "n_embd", "d_model", "n_embed")
HEADS = ("num_attention_heads", "n_head", "num_heads", "n_heads", "attention_heads")
CONTEXT = (
    "max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "context_length",
    "seq_length",
)  # fmt: skip
MAX_BLOCKS = 10_000
MAX_LABELS = 10_000
MAX_SIZE = 2**31 - 1  # of every other size in a config
UNLIMITED = 2**20  # tokens: the context of a model whose config sets no limit


def size(spec: str, config: Mapping[str, Any], *keys: str, most: int = MAX_SIZE) -> int:
    """The number in a config under the first of these names that it has. Raises ModelError: there
    is none, or it is no possible size."""
    key = next((key for key in keys if config.get(key) is not None), keys[0])
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool):
        raise refused(spec, f"Its config.json has no {key}.")
    if not 1 <= value <= most:
        raise refused(spec, f"The {key} in its config.json is not between 1 and {most:,}.")
    return value


def context(spec: str, config: Mapping[str, Any]) -> int:
    """The longest sequence in tokens; models without position embeddings may set no limit."""
    known = any(config.get(key) is not None for key in CONTEXT)
    return size(spec, config, *CONTEXT) if known else UNLIMITED


def refused(spec: str, why: str, do: str = "Choose another causal language model.") -> ModelError:
    """The error for a model that nothing here can read."""
    return ModelError(f"{spec} is not supported.", why, do, field="model")
