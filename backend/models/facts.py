"""Properties of a causal LM from its config and the headers of its weight files.

Reads shapes only, no weights, and imports no tensor library, so the web process can use it. Models
that no method supports are rejected here, with the reason, before any work starts.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from backend.errors import ModelError

DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
IN_OUT = {"gpt2", "openai-gpt"}  # architectures that store weights as [in, out]
IN_BLOCK = re.compile(r"(?:.*?\.)?(?:layers|h|blocks|block)\.(\d+)\.(.+)\.weight")
NOT_PARAMETERS = re.compile(r".*(\.attn\.(masked_)?bias|rotary_emb\.inv_freq)")
BASE_PREFIX = {"h.": "transformer.", "decoder.": "model.", "layers.": "model."}
EXPERT_KEYS = ("num_local_experts", "num_experts", "n_routed_experts")
LLAMA_LIKE = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2")
EMBEDDINGS = (
    "model.embed_tokens.weight",
    "model.decoder.embed_tokens.weight",
    "transformer.wte.weight",
    "gpt_neox.embed_in.weight",
)
HEAD_KEYS = ("num_attention_heads", "n_head")
MAX_NAME = 500  # characters of a tensor name
MAX_BLOCKS = 10_000
MAX_SIZE = 2**31 - 1  # of every other size in a config


@dataclass(frozen=True)
class TensorHeader:
    """Shape of one stored tensor, and its dtype as safetensors spells it."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def elements(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True)
class LinearShape:
    """A prunable weight: `name` as in `model.named_modules()`, [rows = out, columns = in]."""

    name: str
    block: int
    module: str
    rows: int
    columns: int

    @property
    def weights(self) -> int:
        return self.rows * self.columns


@dataclass(frozen=True)
class ModelFacts:
    """Properties of a model, known before it is loaded.

    Attributes:
        note: a caveat, such as weights that are already quantised; may be empty.
        parameters: number of weights, tied ones counted once.
        context: longest sequence in tokens; `hidden` and `vocabulary` are widths.
        dtype: dtype of most stored weights.
        default_text: name of the default corpus for the model.
    """

    spec: str
    title: str
    note: str
    architecture: str
    parameters: int
    blocks: int
    hidden: int
    vocabulary: int
    context: int
    linears: tuple[LinearShape, ...]
    dtype: str
    default_text: str

    @property
    def linear_weights(self) -> int:
        """Number of weights of all prunable linears."""
        return sum(linear.weights for linear in self.linears)

    @property
    def weights_per_token(self) -> int:
        """Number of weights used per token: linears and head."""
        return self.linear_weights + self.vocabulary * self.hidden


def facts_from(
    spec: str,
    config: Mapping[str, Any],
    tensors: Mapping[str, TensorHeader],
    title: str = "",
    note: str = "",
) -> ModelFacts:
    """The facts of the model with this config.json and these stored tensors.

    Raises:
        ModelError: the model is not supported.
    """
    architecture = _causal_architecture(spec, config)
    text = text_config(config)
    if not isinstance(text, Mapping):
        raise _refused(spec, "The text_config in its config.json is not a JSON object.")
    _check_not_quantised(spec, config)
    _check_names(spec, tensors)
    _check_dense(spec, text, tensors)
    linears = _linears(str(text.get("model_type", "")), tensors)
    _check_dtypes(spec, tensors)
    _check_heads(spec, text)
    blocks = _size(spec, text, "num_hidden_layers", "n_layer", most=MAX_BLOCKS)
    found = {linear.block for linear in linears}
    if len(found) != blocks or max(found) != blocks - 1:
        raise _refused(
            spec,
            f"Its config specifies {blocks} blocks, but its weights have linears in {len(found)}.",
        )
    facts = ModelFacts(
        spec=spec,
        title=title or spec,
        note=note,
        architecture=architecture,
        parameters=_parameters(text, tensors),
        blocks=blocks,
        hidden=_size(spec, text, "hidden_size", "n_embd"),
        vocabulary=_size(spec, text, "vocab_size"),
        context=_size(spec, text, "max_position_embeddings", "n_positions", "n_ctx"),
        linears=linears,
        dtype=_main_dtype(tensors),
        default_text="toystories" if spec == "toy" else "wikipedia",
    )
    _check_shapes(facts, text, tensors)
    return facts


def _refused(spec: str, why: str, do: str = "Choose a dense causal language model.") -> ModelError:
    return ModelError(f"{spec} cannot be compressed.", why, do, field="model")


def text_config(config: Mapping[str, Any]) -> Any:
    """The part of a config that describes the language model."""
    return config.get("text_config") or config


def _causal_architecture(spec: str, config: Mapping[str, Any]) -> str:
    names = config.get("architectures") or ["missing"]
    name = names[0] if isinstance(names, list) else names
    if not isinstance(name, str) or not re.search(r"(ForCausalLM|LMHeadModel)$", name):
        raise _refused(
            spec,
            "It is not a causal language model: the architecture in its config is "
            f"{str(name)[:80]}.",
        )
    return name


def _check_not_quantised(spec: str, config: Mapping[str, Any]) -> None:
    if how := config.get("quantization_config"):
        kind = how.get("quant_method", "some method") if isinstance(how, Mapping) else how
        raise _refused(
            spec,
            f"Its weights are already quantised ({str(kind)[:80]}).",
            "Choose the original model.",
        )


def _check_names(spec: str, tensors: Mapping[str, TensorHeader]) -> None:
    if long := next((name for name in tensors if len(name) > MAX_NAME), None):
        raise _refused(spec, f"The name of a tensor has {len(long):,} characters.")


def _check_dense(spec: str, config: Mapping[str, Any], tensors: Mapping[str, TensorHeader]) -> None:
    several = any((config.get(key) or 0) not in (0, 1) for key in EXPERT_KEYS)
    if several or any(".experts." in name for name in tensors):
        raise _refused(
            spec,
            "It is a mixture of experts, whose weights are three-dimensional parameters, not the "
            "matrices of linear layers.",
        )
    for name, tensor in tensors.items():
        flat = len(tensor.shape) <= 2 and tensor.elements > 0
        if not flat and IN_BLOCK.fullmatch(name):
            raise _refused(
                spec, f"{name} has the shape {list(tensor.shape)}; a matrix is required."
            )


def _check_dtypes(spec: str, tensors: Mapping[str, TensorHeader]) -> None:
    for name, tensor in tensors.items():
        if IN_BLOCK.fullmatch(name) and tensor.dtype not in DTYPES:
            raise _refused(spec, f"{name} is stored as {tensor.dtype}, not as floating point.")


def _check_heads(spec: str, config: Mapping[str, Any]) -> None:
    """Check the attention heads, where the config has them under one of the usual names."""
    if not any(key in config for key in HEAD_KEYS):
        return
    heads = _size(spec, config, *HEAD_KEYS)
    if config.get("num_key_value_heads") is not None:
        groups = _size(spec, config, "num_key_value_heads")
        if heads % groups:
            raise _refused(spec, f"Its {heads} attention heads do not share {groups} key heads.")
    hidden = _size(spec, config, "hidden_size", "n_embd")
    if config.get("head_dim") is not None:
        _size(spec, config, "head_dim")
    elif hidden % heads:
        raise _refused(spec, f"A hidden size of {hidden} cannot be split into {heads} heads.")


def _check_shapes(
    facts: ModelFacts, config: Mapping[str, Any], tensors: Mapping[str, TensorHeader]
) -> None:
    """Check the shapes that a config fixes: of the embedding, and of the linears of LLaMA-like
    models. Those of other architectures are checked on loading."""
    expected = _expected_shapes(facts, config)
    for name, tensor in tensors.items():
        match = IN_BLOCK.fullmatch(name)
        shape = expected.get(match[2] if match else full_name(name))
        if shape and tensor.shape != shape:
            raise _refused(
                facts.spec,
                f"{name} has the shape {list(tensor.shape)}; its config.json specifies "
                f"{list(shape)}.",
                "Choose a complete model folder, with the config that belongs to its weights.",
            )


def _expected_shapes(facts: ModelFacts, config: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Module of a block, or parameter outside of the blocks -> shape."""
    hidden = facts.hidden
    embedding = (facts.vocabulary, config.get("word_embed_proj_dim", hidden))
    expected = dict.fromkeys(EMBEDDINGS, embedding)
    heads, inner = config.get("num_attention_heads"), config.get("intermediate_size")
    if config.get("model_type") not in LLAMA_LIKE:
        return expected
    if not isinstance(heads, int) or not isinstance(inner, int):
        return expected
    width = config.get("head_dim") or hidden // heads
    queries, keys = heads * width, (config.get("num_key_value_heads") or heads) * width
    return expected | {
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }


def _linears(model_type: str, tensors: Mapping[str, TensorHeader]) -> tuple[LinearShape, ...]:
    """All matrices inside blocks, in block order, with their names in the loaded model."""
    linears = []
    for name, tensor in tensors.items():
        match = IN_BLOCK.fullmatch(name)
        if match and len(tensor.shape) == 2:
            rows, columns = tensor.shape[::-1] if model_type in IN_OUT else tensor.shape
            full = full_name(name).removesuffix(".weight")
            linears.append(LinearShape(full, int(match[1]), match[2], rows, columns))
    return tuple(sorted(linears, key=lambda linear: (linear.block, linear.module)))


def full_name(name: str) -> str:
    """The name in the loaded model: checkpoints of the base model lack its prefix."""
    return next((p + name for start, p in BASE_PREFIX.items() if name.startswith(start)), name)


def _parameters(config: Mapping[str, Any], tensors: Mapping[str, TensorHeader]) -> int:
    tied = {"lm_head.weight"} if config.get("tie_word_embeddings") else set()
    return sum(
        tensor.elements
        for name, tensor in tensors.items()
        if name not in tied and not NOT_PARAMETERS.fullmatch(name)
    )


def _main_dtype(tensors: Mapping[str, TensorHeader]) -> str:
    weights: Counter[str] = Counter()
    for tensor in tensors.values():
        weights[tensor.dtype] += tensor.elements
    stored = weights.most_common(1)[0][0]
    return DTYPES.get(stored, stored)


def _size(spec: str, config: Mapping[str, Any], *keys: str, most: int = MAX_SIZE) -> int:
    """The number in a config under the first of these names that it has."""
    key = next((key for key in keys if key in config), keys[0])
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool):
        raise _refused(spec, f"Its config.json has no {key}.")
    if not 1 <= value <= most:
        raise _refused(spec, f"The {key} in its config.json is not between 1 and {most:,}.")
    return value
