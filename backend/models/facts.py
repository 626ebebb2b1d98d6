"""Properties of a causal LM from its config and the headers of its weight files. Imports no tensor
library. Models that no method supports are rejected here, with the reason, before any work
starts."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from backend.errors import ModelError
from backend.models.families.stored import (
    IN_BLOCK,
    LinearShape,
    TensorHeader,
    block_matrices,
    compressed,
    full_name,
)
from backend.models.families.support import ModelSupport, support_of, unsupported

BLOCKS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
HIDDEN = ("hidden_size", "n_embd", "d_model", "n_embed")
HEAD_COUNTS = ("num_attention_heads", "n_head", "num_heads", "n_heads", "attention_heads")
CONTEXT = (
    "max_position_embeddings",
    "n_positions",
    "n_ctx",
    "max_seq_len",
    "context_length",
    "seq_length",
)
MAX_SIZE = 2**31 - 1  # of every other size in a config
UNLIMITED = 2**20  # tokens: the context of a model whose config sets no limit
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
NOT_PARAMETERS = re.compile(r".*(\.(attn|attention)\.(masked_)?bias|rotary_emb\.inv_freq)")
LLAMA_LIKE = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2")
BIDIRECTIONAL = re.compile(r"\w*(Bert|BERT|Roberta|RoBERTa|Electra|Erine|Rembert|RoFormer)\w*")
EMBEDDINGS = (
    "model.embed_tokens.weight",
    "model.decoder.embed_tokens.weight",
    "transformer.wte.weight",
    "transformer.word_embeddings.weight",
    "gpt_neox.embed_in.weight",
)
HEADS = ("lm_head.weight", "embed_out.weight")
MAX_NAME = 500  # characters of a tensor name
OUTSIDE = -1  # the block of a matrix that is in none
NO_SUPPORT = ModelSupport()


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


def refused(spec: str, why: str, do: str = "Choose another causal language model.") -> ModelError:
    """The error for a model that nothing here can read."""
    return ModelError(f"{spec} is not supported.", why, do, field="model")


@dataclass(frozen=True)
class ModelFacts:
    """Properties of a model, known before it is loaded."""

    spec: str
    title: str
    note: str  # a caveat, such as weights that are already quantized; may be empty
    architecture: str
    parameters: int  # number of weights, tied ones counted once
    blocks: int
    hidden: int
    vocabulary: int
    context: int  # longest sequence in tokens; `hidden` and `vocabulary` are widths
    linears: tuple[LinearShape, ...]  # matrices of attention and MLP, which methods compress
    dtype: str  # dtype of most stored weights
    default_text: str  # name of the default corpus for the model
    others: tuple[LinearShape, ...] = ()  # further ones of the blocks, which stay dense
    embeddings: tuple[LinearShape, ...] = ()  # token embedding, and a head that is not tied to it
    support: ModelSupport = NO_SUPPORT  # what the model cannot be used for, and why
    quantized: str = ""  # how its weights are packed; "" if they are not
    bytes: int = 0  # of its files, before they are converted; 0: not known

    @property
    def matrices(self) -> tuple[LinearShape, ...]:
        """All matrices of the blocks, in block order."""
        both = (*self.linears, *self.others)
        return tuple(sorted(both, key=lambda linear: (linear.block, linear.module)))

    def require_compressible(self) -> None:
        """Refuse a model that methods cannot compress. Raises ModelError: says why."""
        if why := self.support.compress:
            raise unsupported(
                self.title,
                why,
                "cannot be compressed",
                "Choose another model. Weight statistics can be taken of any model.",
            )

    def require_decodable(self) -> None:
        """Refuse a model that the decoding loop cannot run. Raises ModelError: says why."""
        if why := self.support.decode:
            raise unsupported(
                self.title,
                why,
                "cannot verify trees of draft tokens",
                "Choose a model with attention to every token in each layer.",
            )

    @property
    def saved_dtype(self) -> str:
        """The dtype in which what is made of it is saved unless it is packed."""
        return self.dtype if self.dtype in ("float16", "bfloat16") else "float32"

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
    quantized: str = "",
) -> ModelFacts:
    """The facts of the model with this config.json and these stored tensors, as they are when
    unpacked. Raises ModelError: the model is not supported."""
    architecture = _causal_architecture(spec, config)
    text = text_config(config)
    if not isinstance(text, Mapping):
        raise refused(spec, "The text_config in its config.json is not a JSON object.")
    family = str(text.get("model_type", ""))
    if BIDIRECTIONAL.fullmatch(architecture) and text.get("is_decoder") is not True:
        raise refused(
            spec, f"{architecture} attends to later tokens: its config does not set is_decoder."
        )
    if long := next((name for name in tensors if len(name) > MAX_NAME), None):
        raise refused(spec, f"The name of a tensor has {len(long):,} characters.")
    matrices = block_matrices(family, tensors)
    for name, tensor in tensors.items():
        parameter = name.endswith((".weight", ".bias")) and not NOT_PARAMETERS.fullmatch(name)
        if parameter and tensor.dtype not in DTYPES:
            raise refused(spec, f"{name} is stored as {tensor.dtype}, not as floating point.")
    _check_heads(spec, text)
    for part in (config, text_config(config)):  # transformers makes a name for each label
        if part.get("num_labels") is not None:
            size(spec, part, "num_labels", most=10_000)
    blocks = _blocks(spec, text, matrices)
    linears = tuple(linear for linear in matrices if compressed(linear.module))
    support = support_of(text, len(linears), bool(quantized))
    if quantized and support.mixture and not support.separate:
        raise refused(spec, "Its experts are packed as one tensor, which is not read.")
    # models without position embeddings may set no limit
    limited = any(text.get(key) is not None for key in CONTEXT)
    weights: Counter[str] = Counter()
    for tensor in tensors.values():
        weights[tensor.dtype] += tensor.elements
    main = weights.most_common(1)[0][0]
    facts = ModelFacts(
        spec=spec,
        title=title or spec,
        note=note,
        architecture=architecture,
        parameters=_parameters(text, tensors),
        blocks=blocks,
        hidden=size(spec, text, *HIDDEN),
        vocabulary=size(spec, text, "vocab_size"),
        context=size(spec, text, *CONTEXT) if limited else UNLIMITED,
        linears=linears,
        dtype=DTYPES.get(main, main),
        default_text=default_text(spec),
        others=tuple(linear for linear in matrices if not compressed(linear.module)),
        embeddings=_embeddings(text, tensors),
        support=support,
        quantized=quantized,
    )
    _check_shapes(facts, text, tensors)
    return facts


def default_text(spec: str) -> str:
    """The corpus that suits a model."""
    return "toystories" if spec == "toy" else "wikipedia"


def text_config(config: Mapping[str, Any]) -> Any:
    """The part of a config that describes the language model."""
    return config.get("text_config") or config


def _causal_architecture(spec: str, config: Mapping[str, Any]) -> str:
    names = config.get("architectures") or ["missing"]
    name = names[0] if isinstance(names, list) else names
    if not isinstance(name, str) or not re.search(r"(ForCausalLM|LMHeadModel)$", name):
        raise refused(
            spec,
            "It is not a causal language model: the architecture in its config is "
            f"{str(name)[:80]}.",
        )
    return name


def _blocks(spec: str, config: Mapping[str, Any], matrices: Sequence[LinearShape]) -> int:
    """The number of blocks, which config and weights agree on."""
    blocks = size(spec, config, *BLOCKS, most=10_000)
    found = {linear.block for linear in matrices}
    if len(found) != blocks or max(found) != blocks - 1:
        raise refused(
            spec,
            f"Its config specifies {blocks} blocks, but its weights have linears in {len(found)}.",
        )
    return blocks


def _check_heads(spec: str, config: Mapping[str, Any]) -> None:
    """Check the attention heads, where the config has them under one of the usual names."""
    if not any(key in config for key in HEAD_COUNTS):
        return
    heads = size(spec, config, *HEAD_COUNTS)
    if config.get("num_key_value_heads") is not None:
        groups = size(spec, config, "num_key_value_heads")
        if heads % groups:
            raise refused(spec, f"Its {heads} attention heads do not share {groups} key heads.")
    hidden = size(spec, config, *HIDDEN)
    if config.get("head_dim") is not None:
        size(spec, config, "head_dim")
    elif hidden % heads:
        raise refused(spec, f"A hidden size of {hidden} cannot be split into {heads} heads.")


def _check_shapes(
    facts: ModelFacts, config: Mapping[str, Any], tensors: Mapping[str, TensorHeader]
) -> None:
    """Check the shapes that a config fixes: of the embedding, and of the linears of LLaMA-like
    models. Those of other architectures are checked on loading."""
    expected = _expected_shapes(facts, config)
    for name, tensor in tensors.items():
        match = IN_BLOCK.fullmatch(name)
        module = match[2].removesuffix(".weight") if match else full_name(name)
        shape = expected.get(module) if name.endswith(".weight") else None
        if shape and tensor.shape != shape:
            raise refused(
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


def _embeddings(
    config: Mapping[str, Any], tensors: Mapping[str, TensorHeader]
) -> tuple[LinearShape, ...]:
    """The token embedding and the head, where they have one of the usual names; a tied head is no
    matrix of its own."""
    stored = {full_name(name): name for name, each in tensors.items() if len(each.shape) == 2}
    heads = () if config.get("tie_word_embeddings") else HEADS
    names = [name for name in EMBEDDINGS if name in stored][:1]
    names += [name for name in heads if names and name in stored][:1]
    shapes = {name: tensors[stored[name]].shape for name in names}
    return tuple(
        LinearShape(module := name.removesuffix(".weight"), OUTSIDE, module, rows, columns)
        for name, (rows, columns) in shapes.items()
    )


def _parameters(config: Mapping[str, Any], tensors: Mapping[str, TensorHeader]) -> int:
    tied = {"lm_head.weight"} if config.get("tie_word_embeddings") else set()
    return sum(
        tensor.elements
        for name, tensor in tensors.items()
        if name not in tied and not NOT_PARAMETERS.fullmatch(name)
    )
