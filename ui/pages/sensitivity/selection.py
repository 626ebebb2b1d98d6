"""What can be looked at of a sensitivity profile, and what is looked at."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd

from backend.models.families.stored import LinearShape
from backend.sensitivity.allocation import Table
from backend.sensitivity.profile import Format, SensitivityProfile
from ui.format import number
from ui.runs.profiles import in_blocks, layers_table, profile_at
from ui.runs.weights import tensor_names
from ui.widgets.explorer import Selection, valid_or_first

MEASURED, PREDICTED, FISHER, ERROR = "kl", "predicted", "fisher", "error"


@dataclass(frozen=True)
class LayerFigure:
    """A figure of each layer in one format."""

    label: str
    unit: str
    verb: str  # says its value of the worst layer
    adds: bool = True  # whether those of several layers may be added up

    @property
    def title(self) -> str:
        return f"{self.label}, {self.unit}" if self.unit else self.label

    def say(self, value: float) -> str:
        return f"{number(value, 2)} {self.unit}"


NATS = "nats a token"
FIGURES: Mapping[str, LayerFigure] = {
    PREDICTED: LayerFigure("Predicted loss", NATS, "costs"),
    MEASURED: LayerFigure("Measured KL divergence", NATS, "costs a measured"),
    FISHER: LayerFigure("Fisher estimate", NATS, "costs an estimated"),
    ERROR: LayerFigure("Relative output error", "%", "loses", adds=False),
}


@dataclass(frozen=True)
class SensitivitySelection(Selection):
    """A format and a layer by name, and a key of `FIGURES`."""

    format: str = ""
    figure: str = ""
    layer: str = ""


@dataclass(frozen=True)
class SensitivityView:
    """A selection, all of whose fields are known."""

    selection: SensitivitySelection
    profile: SensitivityProfile

    @classmethod
    def at(cls, selection: SensitivitySelection) -> "SensitivityView | None":
        """None where the run has measured no layer."""
        profile = profile_at(selection.run)
        if profile is None:
            return None
        profile = in_blocks(profile)
        measured = measured_formats(profile)
        formats = [*map(str, (*measured, *profile.formats))]
        chosen = replace(
            selection,
            format=valid_or_first(selection.format, formats),
            figure=valid_or_first(selection.figure, FIGURES),
        )
        view = cls(chosen, profile)
        worst = [str(name) for name in view.table["tensor"]]
        return cls(replace(chosen, layer=valid_or_first(selection.layer, worst)), profile)

    @property
    def figure(self) -> LayerFigure:
        return FIGURES[self.selection.figure]

    @cached_property
    def form(self) -> Format:
        return Format.parse(self.selection.format)

    @property
    def measured(self) -> list[Format]:
        return measured_formats(self.profile)

    @cached_property
    def tensors(self) -> dict[str, str]:
        """Full name -> "Block 3, q_proj"."""
        return tensor_names(layers_table(self.profile))

    @property
    def layer(self) -> LinearShape:
        return self.profile.layers[self.row]

    @property
    def row(self) -> int:
        return [x.name for x in self.profile.layers].index(self.selection.layer)

    def figures(self, name: str) -> Table:
        """A key of `FIGURES` [layers, formats], in its unit; NaN where there is none."""
        if name != PREDICTED:
            return self.profile.figure(name) * (100 if name == ERROR else 1)
        return np.where(np.isfinite(self.profile.predicted), self.profile.predicted, np.nan)

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row a layer, with a column for each key of `FIGURES` in the chosen format and
        `value`, the chosen one; the largest first."""
        column = self.profile.formats.index(self.form)
        rows = layers_table(self.profile)
        rows = rows.assign(**{name: self.figures(name)[:, column] for name in FIGURES})
        rows = rows.assign(value=rows[self.selection.figure])
        return rows.sort_values("value", ascending=False, kind="stable", ignore_index=True)

    @property
    def known(self) -> pd.DataFrame:
        """The rows of layers that have the chosen figure."""
        return self.table[self.table["value"].notna()]


def measured_formats(profile: SensitivityProfile) -> list[Format]:
    known = np.flatnonzero(np.isfinite(profile.figure(MEASURED)).any(0))
    return [profile.formats[column] for column in known]
