"""Pages that explore the data of one run: their content when opened and after database changes."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar

import gradio as gr

from backend.errors import NotFoundError
from backend.store import queries
from backend.store.states import State
from ui.format import href
from ui.runs.weights import run_choices
from ui.widgets.explorer import S, Selection, as_json_value, control_updates, empty_state
from ui.widgets.panel import Updates, updates


class SettledView(Protocol):
    """The data on a page, with a selection whose fields all have valid values."""

    @property
    def selection(self) -> Selection:
        """The selection that the page shows."""


View = TypeVar("View", bound=SettledView)


def profile_mark(run: str) -> list[Any]:
    """A value that changes with the state of a run and with its recorded profiles."""
    return [queries.job(run).state, *(queries.profiles_mark(run) or ())]


@dataclass(frozen=True)
class ExplorerPage(Generic[S, View]):
    """A page that explores the data of one run.

    Attributes:
        selection: class of the page's selection.
        view: loads the data of a selection; None without data.
        mark: value that changes with the displayed data of a run.
        offers: choices of the controls other than the run.
        draw: updates of everything but the controls.
        profile: name of the profile that the page's runs have recorded.
        kind: kind of the runs that record it.
        no_run, lacks, later: sentences of `empty_state`.
        ended_first: without a run in the address, prefer the newest succeeded run.
    """

    selection: type[S]
    view: Callable[[S], View | None]
    mark: Callable[[str], list[Any]]
    offers: Callable[[View], dict[str, dict[str, Any]]]
    draw: Callable[[View], Updates]
    profile: str
    kind: str
    no_run: str
    lacks: str
    later: str
    ended_first: bool = False

    def at(self, request: gr.Request) -> View | None:
        """The view at an address; None without data."""
        return self.view(self.selection.from_address(request))

    def open(self, request: gr.Request) -> Updates:
        """Updates of a page that has just been opened."""
        return self.refresh_all(self.selection.from_address(request), self.selection())

    def refresh(self, seen: Any, selection: S, target: S | None = None) -> Updates:
        """Updates of the page if its data has changed, else none.

        Args:
            seen: the page's state, as `refresh_all` sent it last.
            target: selection to show after a change; the present one if None.
        """
        with suppress(NotFoundError):  # the run may have been deleted meanwhile
            if seen and seen["mark"] == as_json_value(self.mark(selection.run)):
                return {}
        return self.refresh_all(target or selection, selection, seen)

    def refresh_all(self, selection: S, before: S, seen: Any = None) -> Updates:
        """Updates of the whole page.

        Args:
            selection: selection to show.
            before: selection of the browser.
            seen: the page's state, as this function sent it last; None for a new page.
        """
        jobs = queries.runs_with_profile(self.profile)
        if jobs and not selection.run:
            ended = [job for job in jobs if self.ended_first and job.state == State.SUCCEEDED]
            selection = replace(selection, run=(ended or jobs)[0].run)
        run, runs, view = selection.run, run_choices(jobs, selection.run), self.view(selection)
        if view is None:
            launch = href("new-run", kind=self.kind)
            reason = empty_state(run, self.no_run, self.lacks, self.later, launch)
            return {
                "head": "",
                "seen": None,
                "notice": gr.update(value=reason, visible=True),
                "charts": gr.update(visible=False),
                "run": gr.update(choices=runs, value=run or None),
            }
        offers = as_json_value({"run": {"choices": runs}} | self.offers(view))
        return updates(
            {"notice": gr.update(visible=False), "charts": gr.update(visible=True)},
            {"seen": {"mark": as_json_value(self.mark(run)), "offers": offers}},
            control_updates(view.selection, before, offers, seen and seen["offers"]),
            self.draw(view),
        )
