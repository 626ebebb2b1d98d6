"""Select the layers that are pruned, and the pattern of each. Does not import torch.

    pattern      "2:4"                                   of every layer, unless
    overrides    "mlp.down_proj=4:8, self_attn.*=50%"    gives another; the last match counts
    exclude      "0.*, *.down_proj"                      these stay dense

Names are those of `backend.models.layer_names`.
"""

from collections.abc import Collection
from typing import Protocol

from backend.models import layer_names
from backend.pruning.pattern import Pattern

Overrides = tuple[tuple[str, Pattern], ...]


class PruningFields(Protocol):
    """The config fields that select layers and patterns."""

    @property
    def pattern(self) -> Pattern: ...

    @property
    def overrides(self) -> str: ...

    @property
    def exclude(self) -> str: ...


def read_overrides(text: str) -> Overrides:
    """Parse "mlp.down_proj=4:8, self_attn.*=50%" into names and patterns.

    Raises:
        ValueError: not such a list; the message shows the syntax.
    """
    return layer_names.read_assignments(text, Pattern.parse, "pattern", "mlp.down_proj=4:8")


def layer_patterns(
    layers: Collection[layer_names.NamedLayer], choice: PruningFields
) -> dict[str, Pattern]:
    """Full name -> pattern of every layer that is pruned.

    Raises:
        ConfigError: a name matches no layer, a pattern does not divide a layer, or no layer is
            left to prune.
    """
    overrides = read_overrides(choice.overrides)
    layer_names.check_layer_patterns((name for name, _ in overrides), layers, "overrides")
    chosen = layer_names.select_layers(layers, choice.exclude, "prune")
    patterns = dict[str, Pattern]()
    inputs: dict[str, dict[Pattern, dict[str, int]]] = {"pattern": {}, "overrides": {}}
    for layer in chosen:
        special = [pattern for name, pattern in overrides if layer_names.fits(name, layer)]
        pattern = special[-1] if special else choice.pattern
        patterns[layer.name] = pattern
        field = "overrides" if special else "pattern"
        inputs[field].setdefault(pattern, {})[layer.name] = layer.columns
    for field, by_pattern in inputs.items():
        for pattern, columns in by_pattern.items():
            pattern.require_fit(columns, field)
    return patterns
