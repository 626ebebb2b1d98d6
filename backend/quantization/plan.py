"""Plan of a quantization run: bits, grid and quantizers of each layer, and the stages to make.

The plan is made and checked when the run is submitted. Quantizers with `llama_only` support blocks
with the structure of LLaMA's, in which neighboring layers absorb scales and rotations (see
`bases`). Does not import torch.
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
from backend.quantization.config import (
    STAGE_LABELS,
    DLQATConfig,
    DLQATStage,
    IntegerFormat,
    read_overrides,
)

READERS = {  # layer that reads the residual stream -> norm before it
    **dict.fromkeys(
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "input_layernorm"
    ),
    **dict.fromkeys(("mlp.gate_proj", "mlp.up_proj"), "post_attention_layernorm"),
}
WRITERS = ("self_attn.o_proj", "mlp.down_proj")
PARTS = frozenset({"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"})
CLASS_PREFIXES = ("Llama", "Mistral", "Qwen")  # prefixes of model and norm classes with such blocks
MAX_NAMES = 2  # layers named in an error
EMBEDDING_GROUP = 32  # inputs per group, as in GGUF's blocks
SYMMETRIC: GridType = "symmetric"
AUTO = "auto"  # export format that depends on the model: one of
AUTO_FORMATS = ("slimscope", "compressed-tensors")


def require_llama_blocks(
    method: str, class_name: str, modules: Iterable[str], parts: Iterable[str] = PARTS
) -> None:
    """Refuse blocks without the structure of LLaMA's.

    Args:
        class_name: class of the model, or of its norms.
        modules: names of the layers to quantize within the block.
        parts: names of the children of a block, if they are known.

    Raises:
        ConfigError: the structure differs; the message names the difference.
    """
    differences = sorted({*modules} - {*READERS, *WRITERS}) or sorted({*parts} ^ PARTS)
    if not differences and class_name.startswith(CLASS_PREFIXES):
        return
    difference = differences[0] if differences else class_name
    raise ConfigError(
        f"{method} cannot be used on this model.",
        f"Its blocks do not have the structure of LLaMA's: {difference}.",
        "Remove it from the stages.",
        field="stages",
    )


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class QuantSettings:
    """Quantization settings of some layers.

    Attributes:
        bits: bits per code.
        group_size: inputs per group; 0 for one group per row.
        grid: type of the grid.
        range_search: name of the range search, for quantizers that do not bring their own.
        keep_zeros: keep weights of 0 at 0.
        quantizers: names of the post-training quantizers to apply, one per stage.
        format: export format.
        layers: full names of the layers.
    """

    bits: Annotated[int, Field(ge=2, le=8)]
    group_size: Annotated[int, Field(ge=0)]
    grid: GridType
    range_search: str
    keep_zeros: bool = False
    quantizers: tuple[str, ...] = ()
    format: str = ""
    layers: tuple[str, ...] = ()


class QuantizationPlan(Plan):
    """Settings of each layer, and the stages of a run.

    Attributes:
        stages: stages in running order, dense model first.
        groups: quantized layers, grouped by their settings.
        dense: full names of the layers that stay dense.
        embedding: settings of the token embedding and the head; None if they are not quantized.
    """

    stages: tuple[str, ...]
    groups: tuple[QuantSettings, ...]
    dense: tuple[str, ...] = ()
    embedding: QuantSettings | None = None

    @cached_property
    def layers(self) -> dict[str, QuantSettings | None]:
        """Full name -> settings of the layer; None if it stays dense."""
        quantized = {name: group for group in self.groups for name in group.layers}
        return {**dict.fromkeys(self.dense), **quantized}

    @property
    def format(self) -> Any:
        """Export format."""
        return self.groups[0].format

    @property
    def widths(self) -> dict[str, IntegerFormat]:
        """Full name -> width of each quantized layer."""
        return {name: IntegerFormat(x.bits, x.group_size) for name, x in self.layers.items() if x}

    @property
    def formats(self) -> dict[str, str]:
        widths = self.widths
        return {name: str(widths.get(name, "dense")) for name in self.layers}

    def settings(self, name: str) -> QuantSettings:
        """Return the settings of a quantized layer by its full name."""
        settings = self.layers[name]
        assert settings is not None
        return settings

    def check(self, config: Any) -> None:
        layers = [layer_names.layer_from_name(name) for name in self.layers]
        formats = AUTO_FORMATS if config.format == AUTO else (config.format,)
        if self.format not in formats:
            raise ValueError("the format of the plan does not match the config")
        expected = group_layers(config, layers, self.format, self.widths)
        if expected.model_copy(update={"embedding": self.embedding}) != self:
            raise ValueError("the plan does not match the config")
        embedding_bits = str(self.embedding.bits) if self.embedding else "dense"
        allowed: tuple[str, ...] = (config.embedding,)
        if config.embedding == "auto":
            mixed = budget_of(config.allocation) is not None
            allowed = ("dense", "8", "6", "4") if mixed else ("dense", "8")
        if embedding_bits not in allowed:
            raise ValueError("the plan of the embedding does not match the config")


def plan(
    config: DLQATConfig,
    facts: ModelFacts,
    format: str = "dense",
    outside: Collection[LinearShape] = (),
    bits: int = 0,
    mix: Mapping[str, IntegerFormat] = MappingProxyType({}),
) -> QuantizationPlan:
    """Return the plan of a run on a model.

    Args:
        format: export format.
        outside: the model's embedding and head.
        bits: bits of embedding and head; 0 if they are not quantized.
        mix: full name -> width of each layer, if a budget allocates the bits. Layers not in it stay
            dense. Overrides take precedence.

    Raises:
        ConfigError: there is nothing to make or to train, a name matches no layer, no layer is
            left, the group size does not divide a layer, or a quantizer does not support the
            blocks.
    """
    check_stages(config)
    layer_plan = group_layers(config, facts.linears, format, mix)
    for quantizer in config.quantizers:
        if DECLARED_QUANTIZERS[quantizer].facts.get("llama_only"):
            modules = [x.module for x in facts.linears if layer_plan.layers[x.name]]
            require_llama_blocks(STAGE_LABELS[quantizer], facts.architecture, modules)
    if not bits or not outside:
        return layer_plan
    return layer_plan.model_copy(update={"embedding": _embedding(config, format, outside, bits)})


def _embedding(
    config: DLQATConfig, format: str, outside: Collection[LinearShape], bits: int
) -> QuantSettings:
    """Return the settings of embedding and head. If they have the bits of the layers, they share
    their grid, because transformers supports only one. Otherwise they have a grid of a GGUF
    type."""
    columns = next(iter(outside)).columns
    size, grid = (EMBEDDING_GROUP if columns % EMBEDDING_GROUP == 0 else 0), SYMMETRIC
    if bits == config.bits and (not config.group_size or columns % config.group_size == 0):
        size, grid = config.group_size, config.grid
    names = tuple(x.name for x in outside)
    return QuantSettings(bits, size, grid, embedding_search(bits), format=format, layers=names)


def embedding_search(bits: int) -> str:
    """Return the range search of embedding and head. From 6 bits on ranges are not clipped, because
    that takes minutes."""
    return "minmax" if bits >= 6 else "mse"


def group_layers(
    config: DLQATConfig,
    layers: Collection[layer_names.NamedLayer],
    format: str,
    mix: Mapping[str, IntegerFormat],
) -> QuantizationPlan:
    """Return the plan of some layers, independent of their model."""
    widths = layer_widths(config, layers, mix)
    by_width: dict[IntegerFormat, list[str]] = {}
    for name, width in widths.items():
        by_width.setdefault(width, []).append(name)
    groups = tuple(
        QuantSettings(
            width.bits,
            width.group,
            config.grid,
            config.range_search,
            config.keep_zeros,
            config.quantizers,
            format,
            tuple(names),
        )
        for width, names in by_width.items()
    )
    dense = tuple(x.name for x in layers if x.name not in widths)
    stages = (DLQATStage.DENSE, *config.stages)
    return QuantizationPlan(stages=stages, groups=groups, dense=dense)


def layer_widths(
    config: DLQATConfig,
    layers: Collection[layer_names.NamedLayer],
    mix: Mapping[str, IntegerFormat],
) -> dict[str, IntegerFormat]:
    """Map the full name of every quantized layer to its width.

    Raises:
        ConfigError: a name matches no layer, a group size does not divide a layer, or no layer is
            left.
    """
    overrides = read_overrides(config.overrides)
    layer_names.check_layer_patterns((name for name, _ in overrides), layers, "overrides")
    has_budget = budget_of(config.allocation) is not None
    uniform = IntegerFormat(config.bits, config.group_size)
    widths: dict[str, IntegerFormat] = {}
    columns: dict[tuple[str, int], dict[str, int]] = {}  # field and group size -> layer -> inputs
    for layer in layer_names.select_layers(layers, config.exclude, "quantize"):
        override = [width for name, width in overrides if layer_names.fits(name, layer)]
        width = mix.get(layer.name) if has_budget else uniform
        if override:
            width = override[-1]
        if width is None:
            continue
        widths[layer.name] = width
        field = "overrides" if override else "group_size"
        columns.setdefault((field, width.group), {})[layer.name] = layer.columns
    for (field, group), group_columns in columns.items():
        _require_group_size(group_columns, group, field)
    if not widths:
        raise ConfigError(
            "No layer is left to quantize.",
            f"The budget {config.allocation} leaves all layers at 16 bits.",
            "Choose a smaller budget.",
            field="allocation",
        )
    return widths


def check_stages(config: DLQATConfig) -> None:
    """Refuse a config without stages, or with a trained stage that has nothing to train."""
    if not config.stages:
        raise ConfigError(
            "No stage is selected.",
            "The run would make no model.",
            "Choose a stage, such as dlqat.",
            field="stages",
        )
    if config.rank == 0 and DLQATStage.LORA_ONLY in config.stages:
        raise ConfigError(
            "There is nothing to train.",
            "The rank is 0, and lora-only trains no magnitudes.",
            "Choose a rank of 1 or more, or remove lora-only.",
            field="rank",
        )
    if config.rank == 0 and DLQATStage.LORA in config.stages:
        raise ConfigError(
            "LoRA needs a rank.",
            "The rank is 0, and the stages include lora or lora-gptq.",
            "Choose a rank of 1 or more, or remove these stages.",
            field="rank",
        )


def _require_group_size(columns: Mapping[str, int], size: int, field: str) -> None:
    layers = [name for name, inputs in columns.items() if size and inputs % size]
    if not layers:
        return
    examples = ", ".join(f"{name} ({columns[name]} inputs)" for name in layers[:MAX_NAMES])
    more = f" and {len(layers) - MAX_NAMES} more" if len(layers) > MAX_NAMES else ""
    sizes = ", ".join(map(str, fitting_sizes(columns.values())))
    raise ConfigError(
        f"A group size of {size} does not fit this model.",
        f"It does not divide {examples}{more}.",
        f"Choose {sizes}, or 0 for one group per row." if sizes else "Choose 0: one group per row.",
        field=field,
    )


def fitting_sizes(columns: Collection[int]) -> list[int]:
    """Return the group sizes of 8 or more that divide all given numbers of inputs."""
    common = gcd(*columns)
    small = [n for n in range(1, isqrt(common) + 1) if common % n == 0]
    divisors = sorted({*small, *(common // n for n in small)})
    return [n for n in divisors if n >= 8]


def trainable(layers: Collection[tuple[int, int, int]], rank: int, magnitude: bool = True) -> int:
    """Return the number of trainable parameters, r (out + in) + out in / g per layer.

    Args:
        layers: (out, in, group size) of each linear.
        magnitude: count the group magnitudes as well.
    """
    low_rank = sum(rank * (rows + columns) for rows, columns, _ in layers)
    groups = sum(rows * columns // (size or columns) for rows, columns, size in layers)
    return low_rank + groups * magnitude
