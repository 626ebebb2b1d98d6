"""Sensitivity profiles of runs, and what the pages about them share."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from backend.errors import SlimscopeError
from backend.sensitivity.profile import SensitivityProfile
from backend.statistics.tensors import SENSITIVITY
from backend.store import queries
from jobs.profile.kind import NAME
from jobs.profile.profiles import profile_of_run
from ui.runs.weights import tensor_names
from ui.widgets.explorer import cached_by

OF_PROFILES: dict[str, Any] = {  # of an `ExplorerPage`
    "profile": SENSITIVITY,
    "kind": NAME,
    "no_run": "No model has been profiled yet. A profile measures what each layer loses in each "
    "format.",
    "ended_first": True,
}


@cached_by(queries.profiles_mark)
def profile_at(run: str) -> SensitivityProfile | None:
    """The profile of a run so far; None of a run that has none, or whose model is gone."""
    try:
        return profile_of_run(run)
    except SlimscopeError:
        return None


def in_blocks(profile: SensitivityProfile) -> SensitivityProfile:
    """Without embedding and head, and without the formats that are theirs alone."""
    rows = [row for row, x in enumerate(profile.layers) if x.block >= 0]
    known = np.flatnonzero(np.isfinite(profile.figures[rows]).any((0, 1)))
    layers = tuple(profile.layers[row] for row in rows)
    formats = tuple(profile.formats[column] for column in known)
    return replace(
        profile, layers=layers, formats=formats, figures=profile.figures[rows][:, :, known]
    )


def first_to_break(run: str) -> str:
    """The layer that loses most in the format Sensitivity opens with; empty without a profile."""
    whole = profile_at(run)
    if whole is None or not (profile := in_blocks(whole)).layers:
        return ""
    column = int(np.isfinite(profile.figure("kl")).any(0).argmax())  # the first that was measured
    losses = np.nan_to_num(profile.predicted[:, column], posinf=0.0)
    table, layer = layers_table(profile), profile.layers[int(losses.argmax())]
    return tensor_names(table)[layer.name]


def layers_table(profile: SensitivityProfile) -> pd.DataFrame:
    """One row a layer, as maps of layers take them: tensor, block, module, n (of weights)."""
    rows = [(x.name, x.block, x.module, x.weights) for x in profile.layers]
    return pd.DataFrame(rows, columns=["tensor", "block", "module", "n"])
