"""The plan of a quantization run: bits, grid and quantizers of each layer, and the stages to make.
Made and checked when the run is submitted. Does not import torch.

Quantizers with `llama_only` know the blocks of LLaMA, and what is built like them, so that
neighbors take over what scales or turns inputs (see `bases`).
"""

from collections.abc import Collection, Iterable, Mapping
from functools import cached_property
from math import gcd, isqrt
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from backend.budget import budget_of
from backend.errors import ConfigError
from backend.models import layer_names
from backend.models.facts import ModelFacts
from backend.models.families.stored import LinearShape
from backend.options import Plan
from backend.quantization import DECLARED_QUANTIZERS, GridType
from backend.quantization.config import STAGE_LABELS, DLQATConfig, DLQATStage, Width, read_overrides

READERS = {  # of the residual stream -> the norm before them
    **dict.fromkeys(
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "input_layernorm"
    ),
    **dict.fromkeys(("mlp.gate_proj", "mlp.up_proj"), "post_attention_layernorm"),
}
WRITERS = ("self_attn.o_proj", "mlp.down_proj")
PARTS = frozenset({"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"})  # of a block
FAMILIES = ("Llama", "Mistral", "Qwen")  # how the names of their classes begin
MAX_NAMES = 2  # layers named in an error
EMBEDDING_GROUP = 32  # inputs, as of GGUF's blocks
SYMMETRIC: GridType = "symmetric"


def require_llama_blocks(
    method: str, of_class: str, modules: Iterable[str], parts: Iterable[str] = PARTS
) -> None:
    """Refuse blocks that are not built like LLaMA's.

    Args:
        of_class: the name of a class of the model, or of its norms.
        modules: the layers to quantize, by their names in the block.
        parts: what a block consists of, where it is known.

    Raises:
        ConfigError: names what is different.
    """
    strange = sorted({*modules} - {*READERS, *WRITERS}) or sorted({*parts} ^ PARTS)
    if not strange and of_class.startswith(FAMILIES):
        return
    raise ConfigError(
        f"{method} cannot be used on this model.",
        f"Its blocks are not built like those of LLaMA: {strange[0] if strange else of_class}.",
        "Remove it from the stages.",
        field="stages",
    )


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class QuantSettings:
    """How some layers are quantized.

    Attributes:
        group_size: inputs per scale; 0: the whole row.
        space: name of the range search, for quantizers without one of their own.
        keep_zeros: weights that are 0 stay 0.
        quantizers: names of the post-training quantizers that stages apply to them.
        format: of the export.
        layers: full names.
    """

    bits: Annotated[int, Field(ge=2, le=8)]
    group_size: Annotated[int, Field(ge=0)]
    grid: GridType
    space: str
    keep_zeros: bool = False
    quantizers: tuple[str, ...] = ()
    format: str = ""
    layers: tuple[str, ...] = ()


class QuantizationPlan(Plan):
    """What a run does to each layer, and which models it makes of them.

    Attributes:
        stages: in the order in which they are made, the dense model first.
        groups: the layers that are quantized, by their settings.
        dense: full names of those that are not.
        embedding: how the token embedding and the head are quantized; None: they are not.
    """

    stages: tuple[str, ...]
    groups: tuple[QuantSettings, ...]
    dense: tuple[str, ...] = ()
    embedding: QuantSettings | None = None

    @cached_property
    def layers(self) -> dict[str, QuantSettings | None]:
        """Full name -> settings of the layer; None: it stays dense."""
        quantized = {name: group for group in self.groups for name in group.layers}
        return {**dict.fromkeys(self.dense), **quantized}

    @property
    def format(self) -> Any:
        """The format of the export."""
        return self.groups[0].format

    @property
    def widths(self) -> dict[str, Width]:
        """Full name -> width of the layers that are quantized."""
        return {name: Width(x.bits, x.group_size) for name, x in self.layers.items() if x}

    def settings(self, name: str) -> QuantSettings:
        """Settings of the layer of that name, which is quantized."""
        settings = self.layers[name]
        assert settings is not None
        return settings

    def check(self, config: Any) -> None:
        layers = [layer_names.layer_named(name) for name in self.layers]
        again = group_layers(config, layers, config.format, self.widths)
        if again.model_copy(update={"embedding": self.embedding}) != self:
            raise ValueError("the plan is not that of the config")
        found, asked = self.embedding, config.embedding
        bits = str(found.bits) if found else "stored"
        mixed = budget_of(config.allocation) is not None and asked == "auto"
        possible = ("stored", "8", "6", "4") if mixed else ("stored", "8")
        if bits not in (possible if asked == "auto" else (asked,)):
            raise ValueError("the plan of the embedding is not that of the config")


def plan(
    config: DLQATConfig,
    facts: ModelFacts,
    format: str = "dense",
    outside: Collection[LinearShape] = (),
    bits: int = 0,
    mix: Mapping[str, Width] = MappingProxyType({}),
) -> QuantizationPlan:
    """The plan of a run on a model.

    Args:
        outside: its embedding and head, which get so many `bits`.
        mix: full name of a layer -> width, where a budget allocates them: layers that are not in it
            stay dense. Overrides come first.

    Raises:
        ConfigError: there is nothing to make or to train, a name matches no layer, no layer is
            left, the group size does not divide one, or a quantizer does not know the blocks.
    """
    refuse_idle(config)
    made = group_layers(config, facts.linears, format, mix)
    for quantizer in config.quantizers:
        if DECLARED_QUANTIZERS[quantizer].facts.get("llama_only"):
            modules = [x.module for x in facts.linears if made.layers[x.name]]
            require_llama_blocks(STAGE_LABELS[quantizer], facts.architecture, modules)
    if not bits or not outside:
        return made
    return made.model_copy(update={"embedding": _embedding(config, format, outside, bits)})


def _embedding(
    config: DLQATConfig, format: str, outside: Collection[LinearShape], bits: int
) -> QuantSettings:
    """The settings of embedding and head: with the bits of the layers they have their grid, too,
    as transformers reads no other; else one that GGUF's types hold."""
    columns = next(iter(outside)).columns
    size, grid = (EMBEDDING_GROUP if columns % EMBEDDING_GROUP == 0 else 0), SYMMETRIC
    if bits == config.bits and (not config.group_size or columns % config.group_size == 0):
        size, grid = config.group_size, config.grid
    names = tuple(x.name for x in outside)
    return QuantSettings(bits, size, grid, embedding_search(bits), format=format, layers=names)


def embedding_search(bits: int) -> str:
    """The range search of embedding and head; clipping the ranges of 6 bits or more takes
    minutes."""
    return "minmax" if bits >= 6 else "mse"


def group_layers(
    config: DLQATConfig,
    layers: Collection[layer_names.NamedLayer],
    format: str,
    mix: Mapping[str, Width],
) -> QuantizationPlan:
    """The plan for some layers, whatever model they are of."""
    chosen = layer_widths(config, layers, mix)
    by_width: dict[Width, list[str]] = {}
    for name, width in chosen.items():
        by_width.setdefault(width, []).append(name)
    groups = tuple(
        QuantSettings(
            width.bits,
            width.group,
            config.grid,
            config.space,
            config.keep_zeros,
            config.quantizers,
            format,
            tuple(names),
        )
        for width, names in by_width.items()
    )
    dense = tuple(x.name for x in layers if x.name not in chosen)
    stages = (DLQATStage.DENSE, *config.stages)
    return QuantizationPlan(stages=stages, groups=groups, dense=dense)


def layer_widths(
    config: DLQATConfig, layers: Collection[layer_names.NamedLayer], mix: Mapping[str, Width]
) -> dict[str, Width]:
    """Full name -> width of every layer that is quantized. Raises ConfigError: a name matches no
    layer, a group does not divide one, or no layer is left."""
    overrides = read_overrides(config.overrides)
    layer_names.check_layer_patterns((name for name, _ in overrides), layers, "overrides")
    mixed = budget_of(config.allocation) is not None
    uniform = Width(config.bits, config.group_size)
    chosen: dict[str, Width] = {}
    unfit: dict[tuple[str, int], dict[str, int]] = {}
    for layer in layer_names.select_layers(layers, config.exclude, "quantize"):
        special = [width for name, width in overrides if layer_names.fits(name, layer)]
        width = special[-1] if special else mix.get(layer.name) if mixed else uniform
        if width is None:
            continue
        chosen[layer.name] = width
        field = "overrides" if special else "group_size"
        unfit.setdefault((field, width.group), {})[layer.name] = layer.columns
    for (field, group), columns in unfit.items():
        _require_group_size(columns, group, field)
    if not chosen:
        raise ConfigError(
            "No layer is left to quantize.",
            f"{config.allocation} leaves all at 16 bits.",
            "Choose a smaller one.",
            field="allocation",
        )
    return chosen


def refuse_idle(config: DLQATConfig) -> None:
    """Refuse a config without a stage, or a trained stage with nothing to train."""
    if not config.stages:
        raise ConfigError(
            "No stage is selected.",
            "There is nothing to make.",
            "Choose one, such as dlqat.",
            field="stages",
        )
    if config.rank == 0 and DLQATStage.LORA_ONLY in config.stages:
        raise ConfigError(
            "There is nothing to train.",
            "The rank is 0, and lora-only trains no magnitudes.",
            "Choose a rank of 1 or more, or leave out lora-only.",
            field="rank",
        )
    if config.rank == 0 and DLQATStage.LORA in config.stages:
        raise ConfigError(
            "LoRA needs a rank.",
            "The rank is 0, and the LoRA control or a stage built on it is among the stages.",
            "Choose a rank of 1 or more, or leave them out.",
            field="rank",
        )


def _require_group_size(columns: Mapping[str, int], size: int, field: str) -> None:
    unfit = [name for name, inputs in columns.items() if size and inputs % size]
    if not unfit:
        return
    named = ", ".join(f"{name} ({columns[name]} inputs)" for name in unfit[:MAX_NAMES])
    more = f" and {len(unfit) - MAX_NAMES} more" if len(unfit) > MAX_NAMES else ""
    sizes = ", ".join(map(str, fitting_sizes(columns.values())))
    raise ConfigError(
        f"A group size of {size} does not fit this model.",
        f"It does not divide {named}{more}.",
        f"Choose {sizes}, or 0 for one group per row." if sizes else "Choose 0: one group per row.",
        field=field,
    )


def fitting_sizes(columns: Collection[int]) -> list[int]:
    """The group sizes of 8 or more that divide all these numbers of inputs."""
    common = gcd(*columns)
    small = [n for n in range(1, isqrt(common) + 1) if common % n == 0]
    divisors = sorted({*small, *(common // n for n in small)})
    return [n for n in divisors if n >= 8]


def trainable(layers: Collection[tuple[int, int, int]], rank: int, magnitude: bool = True) -> int:
    """Number of trainable parameters of linears (out, in, group size): r (out + in) + out in / g
    each."""
    low_rank = sum(rank * (rows + columns) for rows, columns, _ in layers)
    groups = sum(rows * columns // (size or columns) for rows, columns, size in layers)
    return low_rank + groups * magnitude
