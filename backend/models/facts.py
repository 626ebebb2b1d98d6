"""Properties of a causal LM, read from its config and the headers of its weight files.

Imports no tensor library. Models that no method supports are rejected here, with the reason, before
any work starts."""

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
MAX_SIZE = 2**31 - 1  # largest value of a size in a config, unless a smaller limit is given
UNLIMITED_CONTEXT = 2**20  # tokens: context of a model whose config sets no limit
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
MAX_NAME = 500  # characters in a tensor name
NO_BLOCK = -1  # block index of a matrix outside the blocks
NO_SUPPORT = ModelSupport()


def read_size(spec: str, config: Mapping[str, Any], *keys: str, maximum: int = MAX_SIZE) -> int:
    """Read the size under the first of `keys` that a config has. Raises ModelError: the config has
    none of the keys, or the value is not a possible size."""
    key = next((key for key in keys if config.get(key) is not None), keys[0])
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool):
        raise refused(spec, f"Its config.json has no {key}.")
    if not 1 <= value <= maximum:
        raise refused(spec, f"The {key} in its config.json is not between 1 and {maximum:,}.")
    return value


def refused(spec: str, why: str, do: str = "Choose another causal language model.") -> ModelError:
    """Build the error for a model that is not supported at all."""
    return ModelError(f"{spec} is not supported.", why, do, field="model")


# Bytes per weight below which float32 weights were restored from a file of fewer bits.
RESTORED_BYTES = 3


@dataclass(frozen=True)
class ModelFacts:
    """Properties of a model that has not been loaded.

    Attributes:
        spec: name or path of the model.
        title: name of the model for people.
        note: caveat, such as weights that are already quantized; "" if there is none.
        architecture: class of the model in transformers.
        parameters: number of weights; tied weights count once.
        blocks: number of decoder blocks.
        hidden: width of the hidden states.
        vocabulary: number of token ids.
        context: longest sequence in tokens.
        linears: layers (matrices of attention and MLP), which methods compress.
        dtype: dtype of most stored weights.
        default_text: name of the default corpus for the model.
        dense_matrices: other matrices of the blocks, which stay dense.
        embeddings: token embedding, and the head if it is not tied to the embedding.
        support: reasons why the model cannot be used in some ways.
        quantized: packing of the weights; "" if they are not packed.
        bytes: size of the model's files before conversion; 0 if unknown.
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
    dense_matrices: tuple[LinearShape, ...] = ()
    embeddings: tuple[LinearShape, ...] = ()
    support: ModelSupport = NO_SUPPORT
    quantized: str = ""
    bytes: int = 0

    @property
    def matrices(self) -> tuple[LinearShape, ...]:
        """All matrices of the blocks, in block order."""
        matrices = (*self.linears, *self.dense_matrices)
        return tuple(sorted(matrices, key=lambda linear: (linear.block, linear.module)))

    def require_compressible(self) -> None:
        """Raise `ModelError` with the reason if methods cannot compress the model."""
        if why := self.support.compress:
            raise unsupported(
                self.title,
                why,
                "cannot be compressed",
                "Choose another model. Weight statistics can be taken of any model.",
            )

    def require_decodable(self) -> None:
        """Raise `ModelError` with the reason if the decoding loop cannot run the model."""
        if why := self.support.decode:
            raise unsupported(
                self.title,
                why,
                "cannot verify trees of draft tokens",
                "Choose a model with attention to every token in each layer.",
            )

    @property
    def saved_dtype(self) -> str:
        """Dtype of models that are made from this model, unless they are packed: that of its files,
        or bfloat16 if the files before conversion had fewer than 32 bits per weight."""
        if self.dtype in ("float16", "bfloat16"):
            return self.dtype
        restored = 0 < self.bytes < RESTORED_BYTES * self.parameters
        return "bfloat16" if restored else "float32"

    @property
    def linear_weights(self) -> int:
        """Number of weights of all layers that methods compress."""
        return sum(linear.weights for linear in self.linears)

    @property
    def weights_per_token(self) -> int:
        """Number of weights that a token is multiplied with: layers and head."""
        return self.linear_weights + self.vocabulary * self.hidden


def facts_from(
    spec: str,
    config: Mapping[str, Any],
    tensors: Mapping[str, TensorHeader],
    title: str = "",
    note: str = "",
    quantized: str = "",
) -> ModelFacts:
    """Derive the facts of a model.

    Args:
        spec: name or path of the model.
        config: content of config.json.
        tensors: headers of the stored tensors; those of packed weights as if unpacked.
        title: name of the model for people; "": `spec`.
        note: caveat.
        quantized: packing of the weights.

    Raises:
        ModelError: the model is not supported.
    """
    architecture = _causal_architecture(spec, config)
    text = text_config(config)
    if not isinstance(text, Mapping):
        raise refused(spec, "The text_config in its config.json is not a JSON object.")
    family = str(text.get("model_type", ""))
    if BIDIRECTIONAL.fullmatch(architecture) and text.get("is_decoder") is not True:
        raise refused(
            spec, f"{architecture} attends to later tokens: its config does not set is_decoder."
        )
    if long_name := next((name for name in tensors if len(name) > MAX_NAME), None):
        raise refused(spec, f"The name of a tensor has {len(long_name):,} characters.")
    matrices = block_matrices(family, tensors)
    for name, tensor in tensors.items():
        is_parameter = name.endswith((".weight", ".bias")) and not NOT_PARAMETERS.fullmatch(name)
        if is_parameter and tensor.dtype not in DTYPES:
            raise refused(spec, f"{name} is stored as {tensor.dtype}, not as floating point.")
    _check_heads(spec, text)
    for part in (config, text_config(config)):  # transformers creates a name for each label
        if part.get("num_labels") is not None:
            read_size(spec, part, "num_labels", maximum=10_000)
    blocks = _blocks(spec, text, matrices)
    linears = tuple(linear for linear in matrices if compressed(linear.module))
    support = support_of(text, len(linears), bool(quantized))
    if quantized and support.mixture and not support.separate:
        raise refused(spec, "Its experts are packed as one tensor, a format that cannot be read.")
    # models without position embeddings may set no limit
    has_limit = any(text.get(key) is not None for key in CONTEXT)
    weights_by_dtype: Counter[str] = Counter()
    for tensor in tensors.values():
        weights_by_dtype[tensor.dtype] += tensor.elements
    main_dtype = weights_by_dtype.most_common(1)[0][0]
    facts = ModelFacts(
        spec=spec,
        title=title or spec,
        note=note,
        architecture=architecture,
        parameters=_parameters(text, tensors),
        blocks=blocks,
        hidden=read_size(spec, text, *HIDDEN),
        vocabulary=read_size(spec, text, "vocab_size"),
        context=read_size(spec, text, *CONTEXT) if has_limit else UNLIMITED_CONTEXT,
        linears=linears,
        dtype=DTYPES.get(main_dtype, main_dtype),
        default_text=default_text(spec),
        dense_matrices=tuple(linear for linear in matrices if not compressed(linear.module)),
        embeddings=_embeddings(text, tensors),
        support=support,
        quantized=quantized,
    )
    _check_shapes(facts, text, tensors)
    return facts


def default_text(spec: str) -> str:
    """The name of the default corpus for a model."""
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
    """The number of blocks. Raises ModelError: config and weights disagree."""
    blocks = read_size(spec, config, *BLOCKS, maximum=10_000)
    stored = {linear.block for linear in matrices}
    if len(stored) != blocks or max(stored) != blocks - 1:
        raise refused(
            spec,
            f"Its config specifies {blocks} blocks, but its weights have layers in {len(stored)}.",
        )
    return blocks


def _check_heads(spec: str, config: Mapping[str, Any]) -> None:
    """Check the numbers of attention heads, if the config has them under one of the usual names."""
    if not any(key in config for key in HEAD_COUNTS):
        return
    heads = read_size(spec, config, *HEAD_COUNTS)
    if config.get("num_key_value_heads") is not None:
        key_heads = read_size(spec, config, "num_key_value_heads")
        if heads % key_heads:
            raise refused(spec, f"Its {heads} attention heads cannot share {key_heads} key heads.")
    hidden = read_size(spec, config, *HIDDEN)
    if config.get("head_dim") is not None:
        read_size(spec, config, "head_dim")
    elif hidden % heads:
        raise refused(spec, f"A hidden size of {hidden} cannot be split into {heads} heads.")


def _check_shapes(
    facts: ModelFacts, config: Mapping[str, Any], tensors: Mapping[str, TensorHeader]
) -> None:
    """Check the shapes that follow from the config: of the embedding, and of the layers of
    LLaMA-like models. Other shapes are checked when the model is loaded."""
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
    """Module inside a block, or parameter outside the blocks -> shape."""
    hidden = facts.hidden
    embedding = (facts.vocabulary, config.get("word_embed_proj_dim", hidden))
    expected = dict.fromkeys(EMBEDDINGS, embedding)
    heads, mlp_width = config.get("num_attention_heads"), config.get("intermediate_size")
    if config.get("model_type") not in LLAMA_LIKE:
        return expected
    if not isinstance(heads, int) or not isinstance(mlp_width, int):
        return expected
    head_width = config.get("head_dim") or hidden // heads
    queries = heads * head_width
    keys = (config.get("num_key_value_heads") or heads) * head_width
    return expected | {
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        "mlp.gate_proj": (mlp_width, hidden),
        "mlp.up_proj": (mlp_width, hidden),
        "mlp.down_proj": (hidden, mlp_width),
    }


def _embeddings(
    config: Mapping[str, Any], tensors: Mapping[str, TensorHeader]
) -> tuple[LinearShape, ...]:
    """The token embedding and the head, if they have one of the usual names. A tied head is not
    listed."""
    matrices = {
        full_name(name): tensor for name, tensor in tensors.items() if len(tensor.shape) == 2
    }
    heads = () if config.get("tie_word_embeddings") else HEADS
    names = [name for name in EMBEDDINGS if name in matrices][:1]
    names += [name for name in heads if names and name in matrices][:1]
    shapes = {name: matrices[name].shape for name in names}
    return tuple(
        LinearShape(module := name.removesuffix(".weight"), NO_BLOCK, module, rows, columns)
        for name, (rows, columns) in shapes.items()
    )


def _parameters(config: Mapping[str, Any], tensors: Mapping[str, TensorHeader]) -> int:
    tied = {"lm_head.weight"} if config.get("tie_word_embeddings") else set()
    return sum(
        tensor.elements
        for name, tensor in tensors.items()
        if name not in tied and not NOT_PARAMETERS.fullmatch(name)
    )
