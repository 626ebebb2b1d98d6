"""Curves and statistics of a run as data frames, for pages and charts. Separate from `queries`, so
that listing runs does not import pandas."""

from __future__ import annotations

import pandas as pd

from backend.store import queries


def curves(run: str | int) -> pd.DataFrame:
    """All curve points of a run: columns name, step, value, at."""
    return pd.DataFrame(queries.curve_rows(run), columns=["name", "step", "value", "at"])


def tensor_table(run: str | int) -> pd.DataFrame:
    """One row per tensor, stage and step (`queries.tensor_rows`); empty if there are none."""
    return pd.DataFrame(queries.tensor_rows(run))


def profile_names(run: str | int) -> pd.DataFrame:
    """The stored profiles of a run: columns tensor, block, module, stage, name, step."""
    columns = ["tensor", "block", "module", "stage", "name", "step"]
    return pd.DataFrame(queries.profile_rows(run), columns=columns)
