"""Sensitivity profiles of runs, and what the pages about them share."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar

import gradio as gr
import numpy as np
import pandas as pd

from backend.errors import SlimscopeError
from backend.sensitivity.profile import SensitivityProfile
from backend.statistics.names import SENSITIVITY
from backend.store import queries
from backend.store.states import State
from jobs.profile.config import NAME
from jobs.profile.profiles import profile_of_run
from ui.format import href
from ui.runs.weights import run_choices
from ui.widgets.explorer import (
    Selection,
    as_kept,
    cached_by,
    control_updates,
    empty_state,
    show_charts,
    show_notice,
)
from ui.widgets.panel import Updates, updates

S = TypeVar("S", bound=Selection)


class SettledView(Protocol):
    """A selection, all of whose fields are known, and what it selects."""

    @property
    def selection(self) -> Selection: ...


View = TypeVar("View", bound=SettledView)
NO_RUN = "No model has been profiled yet. A profile measures what each layer loses in each format."


@cached_by(queries.profiles_mark)
def profile_at(run: str) -> SensitivityProfile | None:
    """The profile of a run as far as it is measured; None of a run that has none, or whose model
    is gone."""
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


def layers_table(profile: SensitivityProfile) -> pd.DataFrame:
    """One row a layer, as maps of layers take them: tensor, block, module, n (of weights)."""
    rows = [(x.name, x.block, x.module, x.weights) for x in profile.layers]
    return pd.DataFrame(rows, columns=["tensor", "block", "module", "n"])


@dataclass(frozen=True)
class ProfilePage(Generic[S, View]):
    """What a page about one profile shows when it is opened, and after a database change.

    Attributes:
        view: None where the page has nothing of that run to show.
        mark: of a run, changes with what is shown.
        offers: of the controls besides the run; `draw` is all else.
        lacks, later: see `empty_state`.
    """

    view: Callable[[S], View | None]
    mark: Callable[[str], list[Any]]
    offers: Callable[[View], dict[str, dict[str, Any]]]
    draw: Callable[[View], Updates]
    lacks: str
    later: str

    def open(self, empty: S, request: gr.Request) -> Updates:
        return self.refresh_all(empty.from_address(request), empty)

    def refresh(self, seen: Any, selection: S) -> Updates:
        if seen and seen["mark"] == as_kept(self.mark(selection.run)):
            return {}
        return self.refresh_all(selection, selection, seen)

    def refresh_all(self, selection: S, before: S, seen: Any = None) -> Updates:
        """All of the page; `before` is the browser's selection, `seen` what was shown last."""
        jobs = queries.runs_with_profile(SENSITIVITY)
        if jobs and not selection.run:
            ended = [job for job in jobs if job.state == State.SUCCEEDED]
            selection = replace(selection, run=(ended or jobs)[0].run)
        runs, view = run_choices(jobs, selection.run), self.view(selection)
        if view is None:
            new = href("new", kind=NAME)
            reason = empty_state(selection.run, NO_RUN, self.lacks, self.later, new)
            return updates({"head": ""}, show_notice(reason, runs, selection.run))
        offers = as_kept({"run": {"choices": runs}} | self.offers(view))
        return updates(
            show_charts(),
            {"seen": {"mark": as_kept(self.mark(selection.run)), "offers": offers}},
            control_updates(view.selection, before, offers, seen and seen["offers"]),
            self.draw(view),
        )
