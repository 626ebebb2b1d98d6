"""Plan of an SDS run: stages, passes, and the pattern, pruner and damping of each layer.

Does not import torch.

OWL sets the sparsity of each block from its share of outliers (Yin et al., arXiv 2310.05175). A
weight is an outlier if its score |W_ij| sqrt(H_jj) exceeds M times the mean score of its layer:

    D_b = share of outliers among the weights of block b
    r_b = 2 lambda (D_b - min D) / (max D - min D)
    S_b = S + mean(r) - r_b

Blocks with more outliers stay denser. The comparison with the mean of the layer is our choice: the
paper uses the mean of the block, which the layers with the largest weights dominate. The mean of r
is weighted by the number of weights, so that the mean of S_b is S even if layers are excluded. H is
computed from the inputs of the dense model. Overridden layers are excluded from the allocation."""

from collections.abc import Collection, Mapping
from functools import cached_property
from itertools import chain
from types import MappingProxyType
from typing import Literal

from pydantic import BaseModel, ConfigDict

from backend.budget import budget_of
from backend.errors import ConfigError
from backend.models.layer_names import (
    NamedLayer,
    check_layer_patterns,
    fits,
    layer_from_name,
    select_layers,
)
from backend.options import Plan
from backend.pruning.config import SDSConfig, SDSPass, SDSStage
from backend.pruning.pattern import Pattern, PatternField, read_overrides

OUTLIER_MULTIPLE, SPREAD = 5.0, 0.08  # M and lambda, as published


def check_allocation(config: SDSConfig) -> None:
    """Check that OWL can distribute the sparsity of a config over the blocks.

    Raises:
        ConfigError: the pattern is n:m, or a block could lose none or all of its weights.
    """
    pattern = config.pattern
    if config.allocation != "owl":
        return
    if pattern.structured:
        raise ConfigError(
            f"OWL does not work with the pattern {pattern}.",
            "An n:m pattern has the same sparsity in every block.",
            "Choose a percentage as pattern, or uniform allocation.",
            field="allocation",
        )
    if min(pattern.drop, 1 - pattern.drop) <= 2 * SPREAD:
        raise ConfigError(
            f"OWL cannot allocate a sparsity of {pattern}.",
            "At this sparsity, OWL could prune a block completely or not at all.",
            f"Choose a percentage between {2 * SPREAD:.0%} and {1 - 2 * SPREAD:.0%}, or uniform.",
            field="allocation",
        )


def block_shares(
    outliers: Mapping[int, float], weights: Mapping[int, int], share: float, spread: float = SPREAD
) -> dict[int, float]:
    """Compute the share of weights to drop in each block, S_b.

    Args:
        outliers: block -> share of outliers, D_b.
        weights: block -> number of weights.
        share: share of weights to drop in all blocks together, S.
        spread: lambda; S_b varies by up to 2 lambda between blocks.

    Returns:
        block -> share.
    """
    low, high = min(outliers.values()), max(outliers.values())
    width = 2 * spread / (high - low) if high > low else 0.0
    r = {block: width * (D - low) for block, D in outliers.items()}
    mean = sum(weights[block] * r[block] for block in r) / sum(weights[block] for block in r)
    return {block: share + mean - r[block] for block in r}


def layer_patterns(layers: Collection[NamedLayer], config: SDSConfig) -> dict[str, Pattern]:
    """Map the full name of every layer to prune to its pattern.

    Raises:
        ConfigError: a name matches no layer, a pattern does not divide the inputs of a layer, or no
            layer remains to prune.
    """
    overrides = read_overrides(config.overrides)
    check_layer_patterns((name for name, _ in overrides), layers, "overrides")
    patterns = dict[str, Pattern]()
    # config field -> pattern -> layer name -> number of inputs; errors name the field
    layer_inputs: dict[str, dict[Pattern, dict[str, int]]] = {"pattern": {}, "overrides": {}}
    for layer in select_layers(layers, config.exclude, "prune"):
        matches = [pattern for name, pattern in overrides if fits(name, layer)]
        pattern = matches[-1] if matches else config.pattern
        patterns[layer.name] = pattern
        field = "overrides" if matches else "pattern"
        layer_inputs[field].setdefault(pattern, {})[layer.name] = layer.columns
    for field, by_pattern in layer_inputs.items():
        for pattern, columns in by_pattern.items():
            pattern.require_fit(columns, field)
    return patterns


class LayerGroup(BaseModel):
    """Layers that share pattern, pruner and damping."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pattern: PatternField  # pattern of each layer; with OWL, the mean over the blocks
    pruner: str
    damping: float
    # "owl": the run allocates the sparsity of each block with `block_shares`
    allocation: Literal["uniform", "owl"]
    layers: tuple[str, ...]  # full names


class PruningPlan(Plan):
    """Stages, passes and layer groups of an SDS run.

    Attributes:
        stages: stages of the run.
        passes: passes over the model.
        groups: layers to prune.
        dense: full names of the layers that stay dense.
    """

    stages: tuple[SDSStage, ...]
    passes: tuple[SDSPass, ...]
    groups: tuple[LayerGroup, ...]
    dense: tuple[str, ...]

    @cached_property
    def layers(self) -> dict[str, LayerGroup]:
        """Full layer name -> group, for every layer to prune."""
        return {name: group for group in self.groups for name in group.layers}

    @property
    def formats(self) -> dict[str, str]:
        pruned = {name: str(group.pattern) for name, group in self.layers.items()}
        return {**dict.fromkeys(self.dense, "dense"), **pruned}

    @property
    def parts(self) -> dict[str, tuple[str, ...]]:
        suffixes = {"uniform": "", "owl": ", allocated by OWL"}
        pruned = {
            f"{group.pruner}, {group.pattern}{suffixes[group.allocation]}": group.layers
            for group in self.groups
        }
        return pruned | ({"left dense": self.dense} if self.dense else {})

    def check(self, config: SDSConfig) -> None:
        names = [*chain.from_iterable(group.layers for group in self.groups), *self.dense]
        budget_patterns = {name: group.pattern for name, group in self.layers.items()}
        if pruning_plan(config, [layer_from_name(name) for name in names], budget_patterns) != self:
            raise ValueError("the plan does not match the config")


def pruning_plan(
    config: SDSConfig,
    layers: Collection[NamedLayer],
    budget_patterns: Mapping[str, Pattern] = MappingProxyType({}),
) -> PruningPlan:
    """Make the plan of an SDS run.

    Args:
        config: options of the run.
        layers: prunable layers of the model.
        budget_patterns: full layer name -> pattern, if a budget allocates the patterns. Layers
            without an entry stay dense. Overrides take precedence.

    Raises:
        ConfigError: a name matches no layer, a pattern does not divide the inputs of a layer, no
            layer remains to prune, or the sparsity cannot be allocated.
    """
    check_allocation(config)
    patterns = layer_patterns(layers, config)
    overridden = [name for name, _ in read_overrides(config.overrides)]
    has_budget = budget_of(config.allocation) is not None
    groups: dict[tuple[str, str], list[str]] = {}  # (pattern, allocation) -> layer names
    dense = []
    for layer in sorted(layers, key=lambda layer: (layer.block, layer.module)):
        is_overridden = any(fits(name, layer) for name in overridden)
        pattern = patterns.get(layer.name)
        if has_budget and pattern and not is_overridden:
            pattern = budget_patterns.get(layer.name)
        if pattern is None:
            dense.append(layer.name)
            continue
        uses_owl = config.allocation == "owl" and not is_overridden
        allocation = "owl" if uses_owl else "uniform"
        groups.setdefault((str(pattern), allocation), []).append(layer.name)
    if not groups:
        raise ConfigError(
            "No layer remains to prune.",
            f"The allocation {config.allocation} leaves every layer dense.",
            "Choose a higher sparsity.",
            field="allocation",
        )
    if config.allocation == "owl" and not any(allocation == "owl" for _, allocation in groups):
        raise ConfigError(
            "OWL has no layer whose sparsity it can set.",
            "Overrides set the pattern of every layer.",
            "Override fewer layers, or choose uniform.",
            "allocation",
        )
    return PruningPlan.model_validate(
        {
            "stages": config.stages,
            "passes": config.passes,
            "groups": [
                {
                    "pattern": pattern,
                    "pruner": config.base,
                    "damping": config.damping,
                    "allocation": allocation,
                    "layers": names,
                }
                for (pattern, allocation), names in groups.items()
            ],
            "dense": dense,
        }
    )
