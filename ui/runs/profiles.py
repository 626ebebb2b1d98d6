"""Sensitivity profiles of runs, as the pages about them read them."""

from __future__ import annotations

import pandas as pd

from backend.errors import SlimscopeError
from backend.sensitivity.profile import SensitivityProfile
from backend.statistics.names import SENSITIVITY
from backend.store import queries
from backend.store.tables import Job
from jobs.profile.config import NAME
from jobs.profile.profiles import profile_of_run
from ui.format import href
from ui.widgets.explorer import cached_by

NO_RUN = "No model has been profiled yet. A profile measures what each layer loses in each format."
NEW = href("new", kind=NAME)


@cached_by(queries.profiles_mark)
def profile_at(run: str) -> SensitivityProfile | None:
    """The profile of a run as far as it is measured; None of a run that has none, or whose model
    is gone."""
    try:
        return profile_of_run(run)
    except SlimscopeError:
        return None


def profiled_runs() -> list[Job]:
    """Runs with a profile or part of one, newest first."""
    return queries.runs_with_profile(SENSITIVITY)


def layers_table(profile: SensitivityProfile) -> pd.DataFrame:
    """One row a layer, as maps of layers take them: tensor, block, module, n (of weights)."""
    rows = [(x.name, x.block, x.module, x.weights) for x in profile.layers]
    return pd.DataFrame(rows, columns=["tensor", "block", "module", "n"])
