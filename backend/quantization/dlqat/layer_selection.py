"""Select the layers to quantise, and reject configs that cannot work. Does not import torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from math import gcd, isqrt
from typing import TypeVar

from backend.errors import ConfigError
from backend.models.layer_names import NamedLayer, check_layer_patterns, fits, read_names
from backend.quantization.dlqat.config import DLQATConfig, DLQATStage

MAX_NAMES = 2  # layers named in an error
SMALLEST_GROUP = 8  # suggested when a group size does not fit

L = TypeVar("L", bound=NamedLayer)


def quantized_layers(layers: Collection[L], config: DLQATConfig) -> list[L]:
    """The layers the config selects, in order.

    Raises:
        ConfigError: a name matches no layer, no layer is left, or the group size does not divide
            one.
    """
    chosen, excluded = read_names(config.layers), read_names(config.exclude)
    check_layer_patterns(chosen, layers, "layers")
    check_layer_patterns(excluded, layers, "exclude")
    selected = [
        x
        for x in layers
        if any(fits(name, x) for name in chosen) and not any(fits(name, x) for name in excluded)
    ]
    if not selected:
        raise ConfigError(
            "No layer is left to quantise.",
            f"{config.layers or 'Nothing'} is selected and {config.exclude or 'nothing'} excluded.",
            "Select more layers, or exclude fewer.",
            field="exclude" if chosen else "layers",
        )
    _refuse_group_size({x.name: x.columns for x in selected}, config.group_size)
    return selected


def _refuse_group_size(columns: Mapping[str, int], size: int) -> None:
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
        field="group_size",
    )


def fitting_sizes(columns: Collection[int]) -> list[int]:
    """The group sizes of 8 or more that divide all these numbers of inputs."""
    common = gcd(*columns)
    small = [n for n in range(1, isqrt(common) + 1) if common % n == 0]
    divisors = sorted({*small, *(common // n for n in small)})
    return [n for n in divisors if n >= SMALLEST_GROUP]


def refuse_idle(config: DLQATConfig) -> None:
    """Reject a config with no stage, or a trained stage with nothing to train.

    Raises:
        ConfigError: names the field.
    """
    stages = config.stages
    if stages == [DLQATStage.DENSE]:
        raise ConfigError(
            "No stage is selected.",
            "All baselines and DL-QAT itself are switched off.",
            "Switch on DL-QAT on the text.",
            field="text_loss",
        )
    for stage in stages:
        if stage in (DLQATStage.DLQAT, DLQATStage.DLQAT_KD, DLQATStage.LORA_ONLY) and not any(
            config.trains(stage)
        ):
            raise ConfigError(
                "There is nothing to train.",
                "The rank is 0 and the magnitudes are not trained.",
                "Choose a rank of 1 or more, or train the magnitudes.",
                field="rank",
            )
    if config.rank == 0 and DLQATStage.LORA in stages:
        raise ConfigError(
            "LoRA needs a rank.",
            "The rank is 0, and the LoRA control or a stage built on it is switched on.",
            "Choose a rank of 1 or more, or switch them off.",
            field="rank",
        )


def trainable(
    layers: Collection[tuple[int, int]], rank: int, group_size: int, magnitude: bool = True
) -> int:
    """Trainable parameters of linears of shapes (out, in): r (out + in) + out in / g each."""
    low_rank = sum(rank * (rows + columns) for rows, columns in layers)
    groups = sum(rows * columns // (group_size or columns) for rows, columns in layers)
    return low_rank + groups * magnitude
