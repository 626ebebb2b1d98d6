"""Pages that look into one run: address or controls -> `Selection` -> view (the selection settled
on stored data) -> updates. The outputs of such a page are its controls, by the names of the
selection's fields, `notice` (on a page without data), `charts` (hidden then) and `seen` (see
`page_state`)."""

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
Item = TypeVar("Item")
Data = TypeVar("Data")
View = TypeVar("View")


@dataclass(frozen=True)
class Selection:
    """Selection of a page: its fields are controls and names in the address, texts or tuples of
    texts; empty ones take their default."""

    run: str = ""

    @classmethod
    def names(cls) -> tuple[str, ...]:
        return tuple(field.name for field in fields(cls))

    @classmethod
    def from_controls(cls, values: Sequence[Any]) -> Self:
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
    known = [*known]
    return value if value in known else known[0]


def neighbor(items: Sequence[Item], item: Item, by: int) -> Item:
    return items[max(0, min(items.index(item) + by, len(items) - 1))]


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
    """Decorator of a function that reads one run, cached until the run's `mark` changes: its name,
    how much is stored, and what else changes with the data; None without such a run."""
    return lambda read: RunReader(read, mark)


@dataclass(frozen=True)
class Explorer(Generic[S, View]):
    """Events of such a page, each of which updates the address. `view` settles a selection on
    stored data, None without any."""

    outputs: Outputs
    selection: type[S]
    view: Callable[[S], View | None]

    @property
    def controls(self) -> list[Component]:
        return [self.outputs[name] for name in self.selection.names()]

    def event(self, name: str, event: str = "input") -> Callable[..., Dependency]:
        listener: Callable[..., Dependency] = getattr(self.outputs[name], event)
        return listener

    def on(self, event: Callable[..., Dependency], handler: Callable[[View], Updates]) -> None:
        def update(selection: S) -> Updates:
            view = self.view(selection)
            return {} if view is None else handler(view)

        self.on_selection(event, update)

    def on_selection(
        self, event: Callable[..., Dependency], handler: Callable[[S], Updates]
    ) -> None:
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
        field = self.outputs[control]
        pick = self.event(chart, "select")(None, field, field, js=js)
        self._keep(pick)
        self.on(pick.then, handler)

    def on_load(self, handler: Callable[[gr.Request], Updates]) -> None:
        def opened(request: gr.Request) -> Updates:
            return {"seen": {}} | handler(request)  # nothing has been seen yet

        self._keep(on_load(self.outputs.named(opened), None, self.outputs.components))

    def on_change(self, handler: Callable[[Any, S], Updates]) -> None:
        """Handler of database changes, given `seen`. While a page is being opened, its controls do
        not hold yet what the address asks for."""

        def update(seen: Any, *values: Any) -> Updates:
            if seen is None:
                return {}
            kept = seen if _is_kept(seen) else None
            return handler(kept, self.selection.from_controls(values))

        outputs = self.outputs
        on_change(outputs.named(update), [outputs["seen"], *self.controls], outputs.components)

    def _keep(self, event: Dependency) -> None:
        url_sync(event, **{name: self.outputs[name] for name in self.selection.names()})


def page_state() -> gr.JSON:
    """A value the browser keeps and sends along. A `gr.State` makes every page hold a connection
    (Gradio 6.31), and browsers open at most six to a server."""
    return gr.JSON(None, visible=False)


def _is_kept(seen: Any) -> bool:
    """True for what pages keep; a browser may send anything."""
    return isinstance(seen, dict) and "mark" in seen and isinstance(seen.get("offers"), dict)


def as_kept(value: Any) -> Any:
    return json.loads(json.dumps(value))


def control_updates(
    new: Selection,
    old: Selection,
    offers: Mapping[str, Mapping[str, Any]],
    known: Mapping[str, Any] | None = None,
) -> Updates:
    """Updates of controls whose offers or values change, so that a refresh takes nothing out of a
    person's hand. `old` is the browser's selection (no run: just opened), `known` its offers."""
    shown: Updates = {}
    for name, offer in offers.items():
        update = {} if known and offer == known.get(name) else dict(offer)
        value = getattr(new, name)
        if not old.run or value != getattr(old, name):
            several = isinstance(value, tuple)
            update["value"] = int(value) if "minimum" in offer else [*value] if several else value
        shown[name] = gr.update(**update)
    return shown


def empty_state(run: str, no_run: str, lacks: str, later: str, launch: str) -> Markup:
    """Notice on a page without data: `no_run` if there is no run at all, `lacks` as in "stored no
    weight statistics", `later` a sentence for active runs, `launch` the address of a form."""
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
