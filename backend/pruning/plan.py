"""The plan of an SDS run: pattern, pruner and damping of every layer, its stages and its passes.

Does not import torch.

OWL: sparsity per block by its share of outliers (Yin et al., arXiv 2310.05175):

    D_b = share of weights of block b with |W_ij| sqrt(H_jj) > M times their layer's mean of it
    r_b = 2 lambda (D_b - min D) / (max D - min D)
    S_b = S + mean(r) - r_b

D_b has the mean of each layer, not that of the block as published, which follows the layers with
the largest weights (ours). Blocks with more outliers stay denser. The mean of r is weighted by the
number of weights, so that the mean of S_b is S even if some layers are excluded. H is computed on
the dense model's inputs. Layers with a pattern of their own (overrides) do not take part."""

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
    layer_named,
    select_layers,
)
from backend.options import Plan
from backend.pruning.config import SDSConfig, SDSPass, SDSStage
from backend.pruning.pattern import Pattern, PatternField, read_overrides

OUTLIER_MULTIPLE, SPREAD = 5.0, 0.08  # M and lambda, as published


def refuse_allocation(config: SDSConfig) -> None:
    """Reject configs that OWL cannot satisfy. Raises ConfigError: the pattern is n:m, or a block
    could lose none or all of its weights."""
    pattern = config.pattern
    if config.allocation != "owl":
        return
    if pattern.structured:
        raise ConfigError(
            f"OWL does not work with the pattern {pattern}.",
            "An n:m pattern has the same sparsity in every block.",
            "Give the pattern as a percentage, or choose uniform.",
            field="allocation",
        )
    if min(pattern.drop, 1 - pattern.drop) <= 2 * SPREAD:
        raise ConfigError(
            f"OWL cannot allocate a sparsity of {pattern}.",
            "A block could lose all of its weights, or none.",
            f"Choose a percentage between {2 * SPREAD:.0%} and {1 - 2 * SPREAD:.0%}, or uniform.",
            field="allocation",
        )


def block_shares(
    outliers: Mapping[int, float], weights: Mapping[int, int], share: float, spread: float = SPREAD
) -> dict[int, float]:
    """Block -> share of its weights that is dropped, S_b. `outliers`: block -> D_b. `weights`:
    block -> number of weights. `share`: S, of all blocks together."""
    low, high = min(outliers.values()), max(outliers.values())
    width = 2 * spread / (high - low) if high > low else 0.0
    r = {block: width * (D - low) for block, D in outliers.items()}
    mean = sum(weights[block] * r[block] for block in r) / sum(weights[block] for block in r)
    return {block: share + mean - r[block] for block in r}


def layer_patterns(layers: Collection[NamedLayer], config: SDSConfig) -> dict[str, Pattern]:
    """Full name -> pattern of every layer that is pruned.

    Raises:
        ConfigError: a name matches no layer, a pattern does not divide a layer, or no layer is
            left to prune.
    """
    overrides = read_overrides(config.overrides)
    check_layer_patterns((name for name, _ in overrides), layers, "overrides")
    chosen = select_layers(layers, config.exclude, "prune")
    patterns = dict[str, Pattern]()
    inputs: dict[str, dict[Pattern, dict[str, int]]] = {"pattern": {}, "overrides": {}}
    for layer in chosen:
        special = [pattern for name, pattern in overrides if fits(name, layer)]
        pattern = special[-1] if special else config.pattern
        patterns[layer.name] = pattern
        field = "overrides" if special else "pattern"
        inputs[field].setdefault(pattern, {})[layer.name] = layer.columns
    for field, by_pattern in inputs.items():
        for pattern, columns in by_pattern.items():
            pattern.require_fit(columns, field)
    return patterns


class LayerGroup(BaseModel):
    """Layers that are pruned alike."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pattern: PatternField  # of each layer; if OWL allocates, their mean sparsity
    pruner: str
    damping: float
    # "owl": the job replaces the pattern of each block, see `block_shares`
    allocation: Literal["uniform", "owl"]
    layers: tuple[str, ...]  # full names


class PruningPlan(Plan):
    """What an SDS run does."""

    stages: tuple[SDSStage, ...]
    passes: tuple[SDSPass, ...]
    groups: tuple[LayerGroup, ...]
    dense: tuple[str, ...]  # full names of the layers that are not pruned

    @cached_property
    def layers(self) -> dict[str, LayerGroup]:
        """Full name -> group of every layer that is pruned."""
        return {name: group for group in self.groups for name in group.layers}

    @property
    def parts(self) -> dict[str, tuple[str, ...]]:
        words = {"uniform": "", "owl": ", allocated by OWL"}
        pruned = {f"{x.pruner}, {x.pattern}{words[x.allocation]}": x.layers for x in self.groups}
        return pruned | ({"left dense": self.dense} if self.dense else {})

    def check(self, config: SDSConfig) -> None:
        names = [*chain.from_iterable(group.layers for group in self.groups), *self.dense]
        mix = {name: group.pattern for name, group in self.layers.items()}
        if pruning_plan(config, [layer_named(name) for name in names], mix) != self:
            raise ValueError("the plan is not that of the config")


def pruning_plan(
    config: SDSConfig,
    layers: Collection[NamedLayer],
    mix: Mapping[str, Pattern] = MappingProxyType({}),
) -> PruningPlan:
    """The plan of a run with this config on a model with these layers.

    Args:
        mix: full name of a layer -> pattern, where a budget allocates them: layers that are not in
            it stay dense. Overrides come first.

    Raises:
        ConfigError: a name matches no layer, a pattern does not divide a layer, no layer is left to
            prune, or the sparsity cannot be allocated.
    """
    refuse_allocation(config)
    patterns = layer_patterns(layers, config)
    overridden = [name for name, _ in read_overrides(config.overrides)]
    mixed = budget_of(config.allocation) is not None
    groups: dict[tuple[str, str], list[str]] = {}
    dense = []
    for layer in sorted(layers, key=lambda layer: (layer.block, layer.module)):
        special = any(fits(name, layer) for name in overridden)
        pattern = patterns.get(layer.name)
        if mixed and pattern and not special:
            pattern = mix.get(layer.name)
        if pattern is None:
            dense.append(layer.name)
            continue
        owl = config.allocation == "owl" and not special
        groups.setdefault((str(pattern), "owl" if owl else "uniform"), []).append(layer.name)
    if not groups:
        raise ConfigError(
            "No layer is left to prune.",
            f"{config.allocation} leaves all of them dense.",
            "Choose a higher sparsity.",
            field="allocation",
        )
    if config.allocation == "owl" and not any(allocation == "owl" for _, allocation in groups):
        raise ConfigError(
            "OWL has no sparsity to set.",
            "Every layer has a pattern of its own.",
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
