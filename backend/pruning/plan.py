"""The plan of an SDS run: pattern, pruner and damping of every layer, its stages and its passes.

Does not import torch."""

from collections.abc import Collection, Mapping
from functools import cached_property
from itertools import chain
from types import MappingProxyType
from typing import Literal

from pydantic import BaseModel, ConfigDict

from backend.budget import budget_of
from backend.errors import ConfigError
from backend.models.layer_names import NamedLayer, fits, layer_named
from backend.options import Plan
from backend.pruning.config import SDSConfig, SDSPass, SDSStage
from backend.pruning.owl import refuse_allocation
from backend.pruning.pattern import Pattern, PatternField, layer_patterns, read_overrides


class LayerGroup(BaseModel):
    """Layers that are pruned alike."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pattern: PatternField  # of each layer; if OWL allocates, their mean sparsity
    pruner: str
    damping: float
    # "owl": the job replaces the pattern of each block, see `owl`
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
        what, why = "No layer is left to prune.", f"{config.allocation} leaves all of them dense."
        raise ConfigError(what, why, "Choose a higher sparsity.", field="allocation")
    if config.allocation == "owl" and not any(allocation == "owl" for _, allocation in groups):
        what, why = "OWL has no sparsity to set.", "Every layer has a pattern of its own."
        raise ConfigError(what, why, "Override fewer layers, or choose uniform.", "allocation")
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
