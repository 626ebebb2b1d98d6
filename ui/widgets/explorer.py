"""Pages that look into one run: a selection, kept in the address, decides what every panel shows.

    address or controls -> `Selection` -> view: the selection settled on what is stored -> updates

A page states its selection, how a view is made of one, and a handler for each event. The outputs
of such a page hold its controls under the names of the selection's fields, and besides:

    notice, charts     why there is nothing to show; the column that is hidden then
    seen               what was shown last, see `page_state`
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import Field, dataclass, fields
from functools import lru_cache
from typing import Any, Generic, Self, TypeVar

import gradio as gr
from gradio.components import Component
from gradio.events import Dependency
from markupsafe import Markup

from backend.errors import NotFoundError
from backend.settings import settings
from backend.store import queries
from backend.store.states import ACTIVE
from ui.charts.chart import Chart
from ui.format import href
from ui.frame import on_change, on_load, query, url_sync
from ui.widgets.dropdown import Choices
from ui.widgets.html import WIDGETS
from ui.widgets.html_panel import LATEST
from ui.widgets.panel import Outputs, Updates

NOT_THERE = "The run has no such figures, or was deleted."
OPENED: dict[str, Any] = {}  # what has been seen of a page that has just been opened: nothing
CLICKED_POINT = "(now) => slimscope.picked.customdata ?? now"
Mark = tuple[Any, ...]
Item = TypeVar("Item")
Data = TypeVar("Data")
View = TypeVar("View")


# the selection ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Selection:
    """What is looked at. A field is a control of the page, and a name in its address: text, or a
    tuple of texts. Empty fields take their default."""

    run: str = ""

    @classmethod
    def names(cls) -> tuple[str, ...]:
        return tuple(field.name for field in fields(cls))

    @classmethod
    def from_controls(cls, values: Sequence[Any]) -> Self:
        """The selection the browser sends: a value for each field, in order."""
        return cls(*(_field_value(f, v) for f, v in zip(fields(cls), values, strict=True)))

    @classmethod
    def from_address(cls, request: gr.Request) -> Self:
        return cls(*(_field_value(f, query(request, f.name)) for f in fields(cls)))


S = TypeVar("S", bound=Selection)


def _field_value(field: Field[Any], value: Any) -> Any:
    if isinstance(field.default, tuple):
        several = value.split(",") if isinstance(value, str) else value or ()
        return tuple(filter(None, several))
    return "" if value is None else str(value)


def known_or_first(value: str, known: Iterable[str]) -> str:
    """The value, or the first that is known."""
    known = [*known]
    return value if value in known else known[0]


def neighbour(items: Sequence[Item], item: Item, by: int) -> Item:
    """The item `by` places on, as far as there are any."""
    return items[max(0, min(items.index(item) + by, len(items) - 1))]


# reading ------------------------------------------------------------------------------------------


class RunReader(Generic[Data]):
    """Reads a run once for all open pages, until its mark changes; None without data."""

    def __init__(
        self, read: Callable[[str], Data], mark: Callable[[str], Mark | None], size: int = 8
    ) -> None:
        self._mark = mark

        @lru_cache(maxsize=size)
        def cached(_url: str, mark: Mark) -> Data:
            return read(mark[0])

        self._cached = cached
        self.clear = cached.cache_clear

    def __call__(self, run: str) -> Data | None:
        mark = self._mark(run) if run else None
        return self._cached(settings().url, mark) if mark and mark[1] else None


def cached_by(
    mark: Callable[[str], Mark | None],
) -> Callable[[Callable[[str], Data]], RunReader[Data]]:
    """Decorator of a function that reads one run.

    Args:
        mark: of a run: its name, how much is stored, and whatever else changes with the data;
            None where there is no such run.
    """
    return lambda read: RunReader(read, mark)


def chart_at(
    selection: type[S], view: Callable[[S], View | None], draw: Callable[[View], Chart]
) -> Callable[[gr.Request], Chart]:
    """Draws a chart of such a page from an address."""

    def drawn(request: gr.Request) -> Chart:
        found = view(selection.from_address(request))
        return Chart(NOT_THERE) if found is None else draw(found)

    return drawn


# events -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Explorer(Generic[S, View]):
    """The events of such a page. After each, the address holds the selection. `view` settles a
    selection on what is stored; None where nothing is."""

    outputs: Outputs
    selection: type[S]
    view: Callable[[S], View | None]

    @property
    def controls(self) -> list[Component]:
        return [self.outputs[name] for name in self.selection.names()]

    def event(self, name: str, event: str = "input") -> Callable[..., Dependency]:
        """An event of one of the outputs."""
        listener: Callable[..., Dependency] = getattr(self.outputs[name], event)
        return listener

    def on(self, event: Callable[..., Dependency], handler: Callable[[View], Updates]) -> None:
        """Updates of a view; none where there is nothing to see."""

        def update(selection: S) -> Updates:
            view = self.view(selection)
            return {} if view is None else handler(view)

        self.on_selection(event, update)

    def on_selection(
        self, event: Callable[..., Dependency], handler: Callable[[S], Updates]
    ) -> None:
        """Updates of a selection as the browser sends it."""

        def update(*values: Any) -> Updates:
            return handler(self.selection.from_controls(values))

        outputs = self.outputs
        self._keep(event(outputs.named(update), self.controls, outputs.components, **LATEST))

    def on_point(
        self, chart: str, control: str, handler: Callable[[View], Updates], event: str = "select"
    ) -> None:
        """A point that is chosen in a chart gives its value to a control."""
        field = self.outputs[control]
        pick = self.event(chart, event)(None, field, field, js=CLICKED_POINT)
        self._keep(pick)
        self.on(pick.then, handler)

    def on_load(self, handler: Callable[[gr.Request], Updates]) -> None:
        """The page is opened."""

        def opened(request: gr.Request) -> Updates:
            return {"seen": OPENED} | handler(request)

        self._keep(on_load(self.outputs.named(opened), None, self.outputs.components))

    def on_change(self, handler: Callable[[Any, S], Updates]) -> None:
        """The database has moved on. The handler is given `seen`, too. A page that is still being
        opened is left alone: its controls do not hold yet what the address asks for."""

        def update(seen: Any, *values: Any) -> Updates:
            if seen is None:
                return {}
            return handler(seen or None, self.selection.from_controls(values))

        outputs = self.outputs
        on_change(outputs.named(update), [outputs["seen"], *self.controls], outputs.components)

    def _keep(self, event: Dependency) -> None:
        url_sync(event, **{name: self.outputs[name] for name in self.selection.names()})


# controls -----------------------------------------------------------------------------------------


def control_updates(
    new: Selection,
    old: Selection,
    offers: Mapping[str, Mapping[str, Any]],
    known: Mapping[str, Any] | None = None,
) -> Updates:
    """What each control offers, and its value, where either changes: a refresh takes nothing out
    of a person's hand.

    Args:
        old: what the browser holds; one without a run is a page that has just been opened.
        offers: control -> properties such as choices, all but the value.
        known: the offers the browser holds.
    """
    shown: Updates = {}
    for name, offer in offers.items():
        update = {} if known and offer == known.get(name) else dict(offer)
        value = getattr(new, name)
        if not old.run or value != getattr(old, name):
            several = isinstance(value, tuple)
            update["value"] = int(value) if "minimum" in offer else [*value] if several else value
        shown[name] = gr.update(**update)
    return shown


# nothing to see -----------------------------------------------------------------------------------


def show_charts() -> Updates:
    return {"notice": gr.update(visible=False), "charts": gr.update(visible=True)}


def show_notice(reason: Markup, runs: Choices, run: str = "") -> Updates:
    """Why there is nothing to see of `run`, in place of the charts; another can be chosen."""
    return {
        "seen": None,
        "notice": gr.update(value=reason, visible=True),
        "charts": gr.update(visible=False),
        "run": gr.update(choices=runs, value=run or None),
    }


def empty_state(run: str, no_run: str, lacks: str, later: str, launch: str) -> Markup:
    """Why a page has nothing to show of a run, and where it would come from.

    Args:
        no_run: the sentence where there is no run at all.
        lacks: what the run has not done, as in "stored no weight statistics".
        later: how it comes while the run goes on, a sentence.
        launch: address of the form that starts another.
    """
    if not run:
        return WIDGETS.empty(no_run, (launch, "New run"))
    try:
        job = queries.job(run)
    except NotFoundError:
        unknown = f"There is no run {run}. Choose one above."
        return WIDGETS.empty(unknown, (href("runs"), "All runs"))
    if job.purged:
        gone = f"{run} was deleted, and its figures with it. Choose another run above."
        return WIDGETS.empty(gone, (href("runs"), "All runs"))
    if job.state in ACTIVE:
        queue = (href("queue", id=run), "See the queue")
        return WIDGETS.empty(f"{run} has {lacks} yet. {later}", queue)
    return WIDGETS.empty(f"{run} has {lacks}.", (launch, "New run"))
