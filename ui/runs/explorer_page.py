"""What a page that looks into one run shows when it is opened, and after a change of the
database."""

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
from ui.widgets.explorer import S, Selection, as_kept, control_updates, empty_state
from ui.widgets.panel import Updates, updates


class SettledView(Protocol):
    """A selection, all of whose fields are known, and what it selects."""

    @property
    def selection(self) -> Selection: ...


View = TypeVar("View", bound=SettledView)


def profiles_seen(run: str) -> list[Any]:
    """A mark that changes with the state of a run, and with the profiles it has stored."""
    return [queries.job(run).state, *(queries.profiles_mark(run) or ())]


@dataclass(frozen=True)
class ExplorerPage(Generic[S, View]):
    """One such page; `no_run`, `lacks`, `later`: see `empty_state`."""

    selection: type[S]
    view: Callable[[S], View | None]  # None where there is nothing of that run to show
    mark: Callable[[str], list[Any]]  # of a run, changes with what is shown
    offers: Callable[[View], dict[str, dict[str, Any]]]  # of the controls besides the run
    draw: Callable[[View], Updates]  # all else
    profile: str  # name of the one that its runs have stored
    kind: str  # of the runs that store it
    no_run: str
    lacks: str
    later: str
    ended_first: bool = False  # without a run in the address, the newest that has ended is shown

    def at(self, request: gr.Request) -> View | None:
        return self.view(self.selection.from_address(request))

    def open(self, request: gr.Request) -> Updates:
        return self.refresh_all(self.selection.from_address(request), self.selection())

    def refresh(self, seen: Any, selection: S, wanted: S | None = None) -> Updates:
        """All of the page when more was recorded; `wanted`: the selection it is to have then."""
        with suppress(NotFoundError):  # of a run that was deleted meanwhile
            if seen and seen["mark"] == as_kept(self.mark(selection.run)):
                return {}
        return self.refresh_all(wanted or selection, selection, seen)

    def refresh_all(self, selection: S, before: S, seen: Any = None) -> Updates:
        """All of the page; `before` is the browser's selection, `seen` what was shown last."""
        jobs = queries.runs_with_profile(self.profile)
        if jobs and not selection.run:
            ended = [job for job in jobs if self.ended_first and job.state == State.SUCCEEDED]
            selection = replace(selection, run=(ended or jobs)[0].run)
        run, runs, view = selection.run, run_choices(jobs, selection.run), self.view(selection)
        if view is None:
            launch = href("new", kind=self.kind)
            reason = empty_state(run, self.no_run, self.lacks, self.later, launch)
            return {
                "head": "",
                "seen": None,
                "notice": gr.update(value=reason, visible=True),
                "charts": gr.update(visible=False),
                "run": gr.update(choices=runs, value=run or None),
            }
        offers = as_kept({"run": {"choices": runs}} | self.offers(view))
        return updates(
            {"notice": gr.update(visible=False), "charts": gr.update(visible=True)},
            {"seen": {"mark": as_kept(self.mark(run)), "offers": offers}},
            control_updates(view.selection, before, offers, seen and seen["offers"]),
            self.draw(view),
        )
