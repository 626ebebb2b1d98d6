"""Events and controls of pages that explore the data of one run.

The address or the controls give a `Selection`; a view adds the recorded data and corrects fields
that the data does not have; handlers turn the view into updates. The outputs of a page are its
controls, named like the fields of the selection, `notice` (visible without data), `charts` (hidden
without data) and `seen` (see `page_state`)."""

import json
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
from ui.format import href
from ui.frame import on_change, on_load, query, url_sync
from ui.widgets.html import LATEST, WIDGETS
from ui.widgets.panel import Outputs, Updates

Mark = tuple[Any, ...]
Data = TypeVar("Data")
View = TypeVar("View")


@dataclass(frozen=True)
class Selection:
    """The selection of a page. Its fields are controls of the page and fields of the address.

    Values are texts or tuples of texts; an empty value stands for the default."""

    run: str = ""

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Names of the fields."""
        return tuple(field.name for field in fields(cls))

    @classmethod
    def from_controls(cls, values: Sequence[Any]) -> Self:
        """The selection in the values of all controls, in the order of the fields."""
        return cls(*(_field_value(f, v) for f, v in zip(fields(cls), values, strict=True)))

    @classmethod
    def from_address(cls, request: gr.Request) -> Self:
        """The selection in the address of a request."""
        return cls(*(_field_value(f, query(request, f.name)) for f in fields(cls)))


S = TypeVar("S", bound=Selection)


def _field_value(field: Field[Any], value: Any) -> Any:
    if isinstance(field.default, tuple):
        several = value.split(",") if isinstance(value, str) else value or ()
        return tuple(filter(None, several))
    return "" if value is None else str(value)


def valid_or_first(value: str, valid: Iterable[str]) -> str:
    """The value if it is valid, else the first valid one."""
    valid = [*valid]
    return value if value in valid else valid[0]


class RunReader(Generic[Data]):
    """A cached reader of a run's data, shared by all open pages.

    A run is read again when its mark changes. Without data the result is None."""

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
    """Decorator that caches a function of one run until the run's mark changes.

    Args:
        mark: the run's name, the number of recorded items, and further values that change with the
            data; None if there is no such run.
    """
    return lambda read: RunReader(read, mark)


@dataclass(frozen=True)
class Explorer(Generic[S, View]):
    """Event handlers of a page; each event also updates the address.

    Attributes:
        outputs: components of the page by name.
        selection: class of the page's selection.
        view: loads the data of a selection; None without data.
    """

    outputs: Outputs
    selection: type[S]
    view: Callable[[S], View | None]

    @property
    def controls(self) -> list[Component]:
        """The controls in the order of the selection's fields."""
        return [self.outputs[name] for name in self.selection.names()]

    def event(self, name: str, event: str = "input") -> Callable[..., Dependency]:
        """An event of the output `name`."""
        listener: Callable[..., Dependency] = getattr(self.outputs[name], event)
        return listener

    def on(self, event: Callable[..., Dependency], handler: Callable[[View], Updates]) -> None:
        """Call a handler with the view of the controls; without data nothing changes."""

        def update(selection: S) -> Updates:
            view = self.view(selection)
            return {} if view is None else handler(view)

        self.on_selection(event, update)

    def on_selection(
        self, event: Callable[..., Dependency], handler: Callable[[S], Updates]
    ) -> None:
        """Call a handler with the selection of the controls."""

        def update(*values: Any) -> Updates:
            return handler(self.selection.from_controls(values))

        outputs = self.outputs
        self._keep(event(outputs.named(update), self.controls, outputs.components, **LATEST))

    def on_point(
        self,
        chart: str,
        control: str,
        handler: Callable[[View], Updates],
        js: str = "(now) => slimscope.picked.customdata ?? now",
    ) -> None:
        """Call a handler after a click on a chart, which first sets a control.

        Args:
            chart: output that is clicked.
            control: output that gets the value.
            js: function from the control's value to its new value.
        """
        field = self.outputs[control]
        pick = self.event(chart, "select")(None, field, field, js=js)
        self._keep(pick)
        self.on(pick.then, handler)

    def on_load(self, handler: Callable[[gr.Request], Updates]) -> None:
        """Call a handler when the page is opened."""

        def opened(request: gr.Request) -> Updates:
            return {"seen": {}} | handler(request)  # ends the state "not open yet", None

        self._keep(on_load(self.outputs.named(opened), None, self.outputs.components))

    def on_change(self, handler: Callable[[Any, S], Updates]) -> None:
        """Call a handler with `seen` and the selection when the database has changed."""

        def update(seen: Any, *values: Any) -> Updates:
            if seen is None:  # the page is still opening: its controls lack the address's values
                return {}
            state = seen if _is_page_state(seen) else None
            return handler(state, self.selection.from_controls(values))

        outputs = self.outputs
        on_change(outputs.named(update), [outputs["seen"], *self.controls], outputs.components)

    def _keep(self, event: Dependency) -> None:
        url_sync(event, **{name: self.outputs[name] for name in self.selection.names()})


def page_state() -> gr.JSON:
    """A value that the browser keeps and sends with each event.

    `gr.State` is no alternative: it makes every page hold a connection (Gradio 6.31), and browsers
    open at most six connections to a server."""
    return gr.JSON(None, visible=False)


def _is_page_state(seen: Any) -> bool:
    """Return True for a state that a page has sent; a browser may send any value."""
    return isinstance(seen, dict) and "mark" in seen and isinstance(seen.get("offers"), dict)


def as_json_value(value: Any) -> Any:
    """A value as it returns from the browser, after conversion to JSON."""
    return json.loads(json.dumps(value))


def control_updates(
    new: Selection,
    old: Selection,
    offers: Mapping[str, Mapping[str, Any]],
    old_offers: Mapping[str, Any] | None = None,
) -> Updates:
    """Updates of the controls whose choices or values change.

    Unchanged controls get no new value, so a refresh does not disturb a user's input.

    Args:
        new: selection to show.
        old: selection of the browser; without a run if the page was just opened.
        offers: new choices by control.
        old_offers: choices that the browser has.
    """
    updates: Updates = {}
    for name, offer in offers.items():
        update = {} if old_offers and offer == old_offers.get(name) else dict(offer)
        value = getattr(new, name)
        if not old.run or value != getattr(old, name):
            update["value"] = _control_value(value, is_number="minimum" in offer)
        updates[name] = gr.update(**update)
    return updates


def _control_value(value: Any, is_number: bool) -> Any:
    if is_number:
        return int(value)
    return [*value] if isinstance(value, tuple) else value


def empty_state(run: str, no_run: str, lacks: str, later: str, launch: str) -> Markup:
    """The notice on a page without data.

    Args:
        run: selected run; empty if none exists.
        no_run: sentence without a run.
        lacks: what the run lacks, as in "recorded no groups".
        later: sentence for a run that is still active.
        launch: address of a form that creates the data.
    """
    if not run:
        return WIDGETS.empty(no_run, (launch, "New run"))
    try:
        job = queries.job(run)
    except NotFoundError:
        unknown = f"There is no run {run}. Choose one above."
        return WIDGETS.empty(unknown, (href("runs"), "All runs"))
    if job.purged:
        deleted = f"{run} and its figures were deleted. Choose another run above."
        return WIDGETS.empty(deleted, (href("runs"), "All runs"))
    if job.state in ACTIVE:
        return WIDGETS.empty(f"{run} has {lacks} yet. {later}", (href("runs"), "See the queue"))
    return WIDGETS.empty(f"{run} has {lacks}.", (launch, "New run"))
