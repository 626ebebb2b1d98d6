"""Matrices of a model, their shapes, and their locations in a checkpoint. Maps the names of stored
tensors to the matrices of the loaded model. Does not import torch.

A mixture of experts is stored in one of three layouts, and loaded as one tensor for all experts of
a block. Here every expert has separate matrices, as in `experts`:

    ...experts.3.w1, w3 | gate_proj, up_proj  [out, in]   ->  ...experts.3.gate_up_proj  [2 out, in]
    ...experts.gate_up_proj  [experts, 2 out, in]         ->  ...experts.0.gate_up_proj, ...
    ...input_linear          [experts, 2 out, in]         ->  ...experts.0.gate_up_proj, ...

Packed weights use the first layout only, which transformers unpacks when it loads a model.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod

IN_OUT = ("gpt2", "openai-gpt")  # families that store weights as [in, out]
IN_OUT_EXPERTS = ("gpt_oss", "llama4_text")  # families that store experts as [in, out]
IN_BLOCK = re.compile(r"(?:.*?\.)?(?:layers|layer|h|blocks|block)\.(\d+)\.(.+)")
BASE_PREFIX = {"h.": "transformer.", "decoder.": "model.", "layers.": "model."}
EXPERT = re.compile(r"(.+\.experts)\.(\d+)\.(\w+)")
EXPERTS = re.compile(r"(.+\.experts)\.(gate_up_proj|up_proj|down_proj)")
MIXTRAL_PARTS = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}  # Mixtral's names
GATE_UP = "gate_up_proj"
ONE_EXPERT = re.compile(r"(.+\.experts)\.(\d+)\.(gate_up_proj|down_proj)")
SEPARATE_EXPERTS = {  # family with separate experts -> names of gate, up and down projection
    **dict.fromkeys(("mixtral", "phimoe", "minimax", "lfm2_moe"), ("w1", "w3", "w2")),
    **dict.fromkeys(
        (
            "qwen2_moe",
            "qwen3_moe",
            "qwen3_next",
            "olmoe",
            "flex_olmo",
            "deepseek_v2",
            "deepseek_v3",
            "dots1",
            "ernie4_5_moe",
            "glm4_moe",
            "hunyuan_v1_moe",
            "jamba",
        ),
        ("gate_proj", "up_proj", "down_proj"),
    ),
}
RENAMED = {  # family -> part of a name in a checkpoint -> that part in the loaded model
    **{family: {".block_sparse_moe.": ".mlp."} for family in ("mixtral", "minimax")},
    "phimoe": {".block_sparse_moe.": ".mlp.", ".mlp.gate.": ".mlp.router."},
    **{
        family: {
            ".block_sparse_moe.input_linear.weight": ".block_sparse_moe.experts.gate_up_proj",
            ".block_sparse_moe.output_linear.weight": ".block_sparse_moe.experts.down_proj",
        }
        for family in ("granitemoe", "granitemoeshared", "granitemoehybrid")
    },
}
DENSE_MODULES = re.compile(  # modules of a block that are neither attention nor MLP
    r"(?:.*\.)?(?:gate|\w*router|shared_expert_gate|altup|laurel|per_layer_\w+|linear_attn|mamba"
    r"|mamba_decoder|mixer|conv|conv_?1d|rg_lru|linear_[xy]|linear_out|indexer|\w*adapter\w*"
    r"|\w*bias_table|embed\w*|wpe|wte)(?:\..*)?"
)


@dataclass(frozen=True)
class TensorHeader:
    """Shape and safetensors dtype of a stored tensor."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def elements(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def bytes(self) -> int:
        """Size in bytes."""
        bits = re.search(r"\d+", self.dtype)  # in F32, BF16, I64, F8_E4M3; none in BOOL
        return self.elements * int(bits[0]) // 8 if bits else self.elements


@dataclass(frozen=True)
class StoredMatrix:
    """Location of a matrix [out, in] in a checkpoint.

    Attributes:
        names: names of the stored tensors, stacked along `out`.
        expert: index into the first dimension of a three-dimensional tensor; None for a matrix.
        transposed: True if the matrix is stored as [in, out].
    """

    names: tuple[str, ...]
    expert: int | None = None
    transposed: bool = False


@dataclass(frozen=True)
class LinearShape:
    """A weight matrix [rows = out, columns = in].

    Attributes:
        name: full name, as in `model.named_modules()`.
        block: index of its decoder block.
        module: name inside the block.
        rows: number of outputs.
        columns: number of inputs.
        stored: location in the checkpoint, not compared: checkpoints of a model may differ in it.
    """

    name: str
    block: int
    module: str
    rows: int
    columns: int
    stored: StoredMatrix = field(default=StoredMatrix(()), compare=False, repr=False)

    @property
    def weights(self) -> int:
        """Number of weights."""
        return self.rows * self.columns


def full_name(name: str) -> str:
    """Add the prefix that names have in the loaded model but not in a checkpoint of the base
    model."""
    prefixes = (prefix for start, prefix in BASE_PREFIX.items() if name.startswith(start))
    return next(prefixes, "") + name


def loaded_name(family: str, name: str) -> str:
    """Convert a tensor's name in a checkpoint to the name in the loaded model, except for experts
    that are stored separately."""
    for stored, loaded in RENAMED.get(family, {}).items():
        name = name.replace(stored, loaded)
    return name


def stored_modules(family: str, module: str) -> tuple[str, ...]:
    """The modules of a checkpoint that form a module of the loaded model, stacked along `out`."""
    if family not in SEPARATE_EXPERTS:
        return (module,)
    names: tuple[str, ...] = (module,)
    if match := ONE_EXPERT.fullmatch(module):
        gate, up, down = SEPARATE_EXPERTS[family]
        parts = (gate, up) if match[3] == GATE_UP else (down,)
        names = tuple(f"{match[1]}.{match[2]}.{part}" for part in parts)
    for stored, loaded in reversed(RENAMED.get(family, {}).items()):
        names = tuple(f"{name}.".replace(loaded, stored)[:-1] for name in names)
    return names


def expert_position(family: str, module: str) -> tuple[str, int]:
    """The inverse of `stored_modules`: the module of the loaded model, and the position in its
    stack."""
    name = loaded_name(family, f"{module}.")[:-1]
    if not (match := EXPERT.fullmatch(name)):
        return name, 0
    part = MIXTRAL_PARTS.get(match[3], match[3])
    loaded_part = GATE_UP if part in ("gate_proj", "up_proj") else part
    return f"{match[1]}.{match[2]}.{loaded_part}", int(part == "up_proj")


def tensor_name(module: str) -> str:
    """The loaded tensor of all experts that contains the matrix of one expert; any other name is
    unchanged."""
    return ONE_EXPERT.sub(r"\1.\3", module)


def compressed(module: str) -> bool:
    """Return True if methods compress a matrix of a block: those of attention and MLP. Routers,
    state-space layers and convolutions stay dense. `module`: name inside the block."""
    return DENSE_MODULES.fullmatch(module) is None


def block_matrices(family: str, tensors: Mapping[str, TensorHeader]) -> tuple[LinearShape, ...]:
    """List all matrices inside blocks in block order, with their names in the loaded model."""
    matrices: dict[str, LinearShape] = {}
    # module of a separately stored expert -> position in its stack -> tensor name
    stacks = dict[str, dict[int, str]]()
    for name in tensors:
        module = full_name(name).removesuffix(".weight")
        loaded_module, position = expert_position(family, module)
        if len(tensors[name].shape) == 2 and EXPERT.fullmatch(loaded_name(family, module)):
            stacks.setdefault(loaded_module, {})[position] = name
            continue
        for linear in _matrices(family, name, tensors):
            matrices[linear.name] = linear
    for name, stack in stacks.items():
        stored_names = tuple(stack[position] for position in sorted(stack))
        shapes = [tensors[stored_name].shape for stored_name in stored_names]
        has_no_gate = {*stack} == {1}
        module = name.replace(GATE_UP, "up_proj") if has_no_gate else name
        if len({*shapes}) == 1 and len(stored_names) == 1 + module.endswith(GATE_UP):
            rows = sum(shape[0] for shape in shapes)
            for linear in _linear(module, (rows, shapes[0][1]), StoredMatrix(stored_names)):
                matrices[linear.name] = linear
    return tuple(sorted(matrices.values(), key=lambda linear: (linear.block, linear.module)))


def _matrices(family: str, name: str, tensors: Mapping[str, TensorHeader]) -> Iterator[LinearShape]:
    """Yield the matrices of the loaded model that a checkpoint stores in the tensor `name`."""
    shape, loaded = tensors[name].shape, loaded_name(family, full_name(name))
    if not tensors[name].elements:
        return
    if len(shape) == 3 and EXPERTS.fullmatch(loaded):
        experts, part = loaded.rsplit(".", 1)
        transposed = family in IN_OUT_EXPERTS
        for expert in range(shape[0]):
            location = StoredMatrix((name,), expert, transposed)
            yield from _linear(f"{experts}.{expert}.{part}", shape[1:], location)
    elif len(shape) == 2 and loaded.endswith(".weight"):
        location = StoredMatrix((name,), None, family in IN_OUT)
        yield from _linear(loaded.removesuffix(".weight"), shape, location)


def _linear(name: str, shape: tuple[int, ...], location: StoredMatrix) -> Iterator[LinearShape]:
    match = IN_BLOCK.fullmatch(name)
    rows, columns = shape[::-1] if location.transposed else shape
    if match and rows and columns:
        yield LinearShape(name, int(match[1]), match[2], rows, columns, location)
