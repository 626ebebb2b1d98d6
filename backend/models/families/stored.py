"""Matrices of a model, their shapes, and where a checkpoint keeps them: from the names of its
tensors to the matrices of the loaded model. Does not import torch.

A mixture of experts is stored in one of three ways and loaded as one tensor for all experts of a
block; here every expert has its own matrices, as in `experts`:

    ...experts.3.w1, w3 | gate_proj, up_proj  [out, in]   ->  ...experts.3.gate_up_proj  [2 out, in]
    ...experts.gate_up_proj  [experts, 2 out, in]         ->  ...experts.0.gate_up_proj, ...
    ...input_linear          [experts, 2 out, in]         ->  ...experts.0.gate_up_proj, ...

Packed weights are stored in the first way alone, which transformers unpacks on loading.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod

IN_OUT = ("gpt2", "openai-gpt")  # families that store weights as [in, out]
IN_OUT_EXPERTS = ("gpt_oss", "llama4_text")  # and the experts of these
IN_BLOCK = re.compile(r"(?:.*?\.)?(?:layers|layer|h|blocks|block)\.(\d+)\.(.+)")
BASE_PREFIX = {"h.": "transformer.", "decoder.": "model.", "layers.": "model."}
EXPERT = re.compile(r"(.+\.experts)\.(\d+)\.(\w+)")
EXPERTS = re.compile(r"(.+\.experts)\.(gate_up_proj|up_proj|down_proj)")
PARTS = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}  # as Mixtral names them
GATE_UP = "gate_up_proj"
ONE_EXPERT = re.compile(r"(.+\.experts)\.(\d+)\.(gate_up_proj|down_proj)")
SEPARATE = {  # families whose checkpoints hold experts one by one -> gate, up and down projection
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
RENAMED = {  # family -> names in a checkpoint, and in the loaded model
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
OTHER = re.compile(  # modules of a block that are neither attention nor MLP
    r"(?:.*\.)?(?:gate|\w*router|shared_expert_gate|altup|laurel|per_layer_\w+|linear_attn|mamba"
    r"|mamba_decoder|mixer|conv|conv_?1d|rg_lru|linear_[xy]|linear_out|indexer|\w*adapter\w*"
    r"|\w*bias_table|embed\w*|wpe|wte)(?:\..*)?"
)


@dataclass(frozen=True)
class TensorHeader:
    """Shape of one stored tensor, and its dtype as safetensors spells it."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def elements(self) -> int:
        return prod(self.shape)

    @property
    def bytes(self) -> int:
        bits = re.search(r"\d+", self.dtype)  # of F32, BF16, I64, F8_E4M3; BOOL has none
        return self.elements * int(bits[0]) // 8 if bits else self.elements


@dataclass(frozen=True)
class StoredMatrix:
    """Where a checkpoint keeps a matrix [out, in]."""

    names: tuple[str, ...]  # of the tensors, stacked along `out`
    # index into the first dimension of a three-dimensional tensor; None: a matrix
    expert: int | None = None
    transposed: bool = False  # whether it is stored as [in, out]


@dataclass(frozen=True)
class LinearShape:
    """A weight matrix: `name` as in `model.named_modules()`, [rows = out, columns = in]."""

    name: str
    block: int
    module: str
    rows: int
    columns: int
    # where the checkpoint keeps it; two checkpoints of one model may differ in that
    stored: StoredMatrix = field(default=StoredMatrix(()), compare=False, repr=False)

    @property
    def weights(self) -> int:
        return self.rows * self.columns


def full_name(name: str) -> str:
    """The name in the loaded model: checkpoints of the base model lack its prefix."""
    return next((p + name for start, p in BASE_PREFIX.items() if name.startswith(start)), name)


def loaded_name(family: str, name: str) -> str:
    """The name in the loaded model of a tensor of a checkpoint, but for experts stored alone."""
    for stored, loaded in RENAMED.get(family, {}).items():
        name = name.replace(stored, loaded)
    return name


def stored_modules(family: str, module: str) -> tuple[str, ...]:
    """The modules of a checkpoint that one of the loaded model is stacked of along `out`."""
    if family not in SEPARATE:
        return (module,)
    names: tuple[str, ...] = (module,)
    if one := ONE_EXPERT.fullmatch(module):
        gate, up, down = SEPARATE[family]
        parts = (gate, up) if one[3] == GATE_UP else (down,)
        names = tuple(f"{one[1]}.{one[2]}.{part}" for part in parts)
    for stored, loaded in reversed(RENAMED.get(family, {}).items()):
        names = tuple(f"{name}.".replace(loaded, stored)[:-1] for name in names)
    return names


def expert_place(family: str, module: str) -> tuple[str, int]:
    """The inverse of `stored_modules`: a module of the loaded model, and the place in it."""
    name = loaded_name(family, f"{module}.")[:-1]
    if not (one := EXPERT.fullmatch(name)):
        return name, 0
    part = PARTS.get(one[3], one[3])
    joined = GATE_UP if part in ("gate_proj", "up_proj") else part
    return f"{one[1]}.{one[2]}.{joined}", int(part == "up_proj")


def together(module: str) -> str:
    """The tensor of all experts that a matrix of one of them is a part of when loaded."""
    return ONE_EXPERT.sub(r"\1.\3", module)


def compressed(module: str) -> bool:
    """Whether a matrix of a block is compressed: attention and MLP are, routers, state-space
    layers, convolutions and the like stay dense. `module`: its name inside the block."""
    return OTHER.fullmatch(module) is None


def block_matrices(family: str, tensors: Mapping[str, TensorHeader]) -> tuple[LinearShape, ...]:
    """All matrices inside blocks, in block order, with their names in the loaded model."""
    found: dict[str, LinearShape] = {}
    parts = dict[str, dict[int, str]]()  # of experts: gate and up projection are one matrix
    for name in tensors:
        module = full_name(name).removesuffix(".weight")
        loaded, place = expert_place(family, module)
        if len(tensors[name].shape) == 2 and EXPERT.fullmatch(loaded_name(family, module)):
            parts.setdefault(loaded, {})[place] = name
            continue
        for linear in _matrices(family, name, tensors):
            found[linear.name] = linear
    for name, by_place in parts.items():
        names = tuple(by_place[place] for place in sorted(by_place))
        shapes = [tensors[each].shape for each in names]
        module = name.replace(GATE_UP, "up_proj") if {*by_place} == {1} else name
        if len({*shapes}) == 1 and len(names) == 1 + module.endswith(GATE_UP):
            rows = sum(shape[0] for shape in shapes)
            for linear in _linear(module, (rows, shapes[0][1]), StoredMatrix(names)):
                found[linear.name] = linear
    return tuple(sorted(found.values(), key=lambda linear: (linear.block, linear.module)))


def _matrices(family: str, name: str, tensors: Mapping[str, TensorHeader]) -> Iterator[LinearShape]:
    """The matrices of the loaded model that begin in the tensor `name`."""
    shape, full = tensors[name].shape, loaded_name(family, full_name(name))
    if not tensors[name].elements:
        return
    if len(shape) == 3 and EXPERTS.fullmatch(full):
        experts, part = full.rsplit(".", 1)
        transposed = family in IN_OUT_EXPERTS
        for expert in range(shape[0]):
            at = StoredMatrix((name,), expert, transposed)
            yield from _linear(f"{experts}.{expert}.{part}", shape[1:], at)
    elif len(shape) == 2 and full.endswith(".weight"):
        at = StoredMatrix((name,), None, family in IN_OUT)
        yield from _linear(full.removesuffix(".weight"), shape, at)


def _linear(full: str, shape: tuple[int, ...], at: StoredMatrix) -> Iterator[LinearShape]:
    match = IN_BLOCK.fullmatch(full)
    rows, columns = shape[::-1] if at.transposed else shape
    if match and rows and columns:
        yield LinearShape(full, int(match[1]), match[2], rows, columns, at)
