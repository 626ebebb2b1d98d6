"""Stories: ordered views of the dashboard, a line of text each, to present and to export.

Stories do not affect runs.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal
from urllib.parse import parse_qsl

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sqlalchemy import select
from sqlalchemy.exc import NoResultFound
from sqlalchemy.orm import Session

from backend.errors import ConfigError, NotFoundError
from backend.printable import one_line
from backend.queue.actor import Actor
from backend.queue.permissions import require_host
from backend.store.session import fetched, locked, now_ms, reading, writing
from backend.store.tables import RUN_NAME, Story

MAX_VIEWS = 40
TITLE_LETTERS = 120
TEXT_LETTERS = 400
FILE_BYTES = 200_000
CHART = re.compile(r"([a-z][a-z0-9-]{0,60})?")
ADDRESS = re.compile(r"(\./)?[\w\-]{0,60}(\?[\w\-.~%&=+,:@/()*!']{0,2000})?", re.ASCII)
NOT_SAVED = "The story was not saved."


@dataclass(frozen=True)
class StoryView:
    """A view of a story.

    Attributes:
        id: number within the story, never used twice.
        address: a page and its state, such as weights?run=sds-0001.
        chart: id of a registered chart of the page; empty for the whole page.
        text: the line of text.
    """

    id: int
    address: str
    chart: str = ""
    text: str = ""

    @property
    def page(self) -> str:
        """The path of the page."""
        return self.address.removeprefix("./").partition("?")[0]

    @property
    def query(self) -> dict[str, str]:
        """The fields of the address."""
        return dict(parse_qsl(self.address.partition("?")[2]))

    @property
    def runs(self) -> list[str]:
        """The runs in the address."""
        words = (word for value in self.query.values() for word in value.split(","))
        return [*dict.fromkeys(word for word in words if RUN_NAME.fullmatch(word))]


class StoryFile(BaseModel):
    """The part of an exported story that an import reads."""

    model_config = ConfigDict(extra="forbid")

    slimscope_story: Literal[1] = 1
    title: str
    views: list[StoryView] = Field(max_length=MAX_VIEWS)


def stored_views(data: Any) -> list[StoryView]:
    """The views in the JSON data of a story; malformed views are omitted."""
    fields = StoryView.__dataclass_fields__
    rows = [row for row in data if isinstance(row, dict)] if isinstance(data, list) else []
    return [
        StoryView(**{name: row[name] for name in fields if name in row})
        for row in rows
        if isinstance(row.get("id"), int) and isinstance(row.get("address"), str)
    ]


def story(number: int) -> Story:
    """A story.

    Raises:
        NotFoundError: there is no such story.
    """
    with reading() as session:
        row = session.get(Story, number)
    if row is None:
        raise NotFoundError(f"There is no story {number}.", "It may have been deleted.")
    return row


def stories() -> list[Story]:
    """Stories, the last saved first."""
    return fetched(select(Story).order_by(Story.saved_at.desc(), Story.id.desc()).limit(500))


def create_story(title: str, actor: Actor, views: Iterable[StoryView] = ()) -> int:
    """Create a story; return its number.

    Raises:
        ConfigError: the title is empty or too long, or a view is malformed.
    """
    require_host(actor, "write a story")
    numbered = [replace(view, id=id) for id, view in enumerate(views, 1)]
    now, checked = now_ms(), _checked(numbered)
    row = Story(title=_title(title), owner=actor.name, views=checked, created_at=now, saved_at=now)
    with writing(durable=True) as session:
        session.add(row)
        session.flush()
        return row.id


def import_story(text: str, actor: Actor) -> int:
    """Create a story from the JSON of a `StoryFile`; return its number.

    Raises:
        ConfigError: the file is too large, malformed, or of another version.
    """
    require_host(actor, "import a story")
    if len(text.encode("utf-8", "replace")) > FILE_BYTES:
        raise ConfigError(
            "The story was not imported.", f"A file has at most {FILE_BYTES:,} bytes."
        )
    try:
        file = StoryFile.model_validate_json(text)
    except ValidationError:
        raise ConfigError(
            "The story was not imported.",
            "The file holds no story of this version.",
            "Export it again.",
        ) from None
    return create_story(file.title, actor, file.views)


def exported_story(row: Story) -> str:
    """The JSON of the `StoryFile` of a story."""
    return StoryFile(title=row.title, views=stored_views(row.views)).model_dump_json()


def rename_story(number: int, title: str, actor: Actor) -> None:
    """Set the title of a story."""
    require_host(actor, "write a story")
    with writing() as session:
        row = _locked(session, number)
        row.title, row.saved_at = _title(title), now_ms()


def delete_story(number: int, actor: Actor) -> None:
    """Delete a story, but not its runs."""
    require_host(actor, "delete a story")
    with writing() as session:
        session.delete(_locked(session, number))


def add_view(
    number: int, address: str, chart: str, text: str, actor: Actor, at: int = MAX_VIEWS
) -> None:
    """Add a view to a story, before the view at position `at`, by default at the end. The caller
    has checked that page and chart exist."""

    def insert(views: list[StoryView]) -> list[StoryView]:
        id = max((view.id for view in views), default=0) + 1
        return [*views[:at], StoryView(id, address, chart, text), *views[at:]]

    _change(number, actor, insert)


def write_text(number: int, view: int, text: str, actor: Actor) -> None:
    """Set the line of text of a view."""
    _change(
        number,
        actor,
        lambda views: [replace(v, text=text) if v.id == view else v for v in views],
    )


def move_view(number: int, view: int, above: int, actor: Actor) -> None:
    """Move a view below the view `above`; to the top if there is none."""

    def reorder(views: list[StoryView]) -> list[StoryView]:
        others = [v for v in views if v.id != view]
        at = next((at for at, v in enumerate(others, 1) if v.id == above), 0)
        return [*others[:at], *(v for v in views if v.id == view), *others[at:]]

    _change(number, actor, reorder)


def remove_view(number: int, view: int, actor: Actor) -> None:
    """Remove a view from a story. Undo: `add_view` at its position."""
    _change(number, actor, lambda views: [v for v in views if v.id != view])


def _change(
    number: int, actor: Actor, change: Callable[[list[StoryView]], list[StoryView]]
) -> None:
    """Change the views of a story in one transaction, so that concurrent changes are kept."""
    require_host(actor, "write a story")
    with writing() as session:
        row = _locked(session, number)
        row.views, row.saved_at = _checked(change(stored_views(row.views))), now_ms()


def _locked(session: Session, number: int) -> Story:
    """The row of a story, locked until the end of the transaction."""
    try:
        (row,) = locked(session, Story, [number])
    except NoResultFound:
        raise NotFoundError(NOT_SAVED, f"There is no story {number} any more.") from None
    return row


def _checked(views: Iterable[StoryView]) -> list[dict[str, Any]]:
    """The rows of cleaned views.

    Raises:
        ConfigError: too many views, an address that is not of a page, or a long text.
    """
    rows = [replace(view, text=one_line(view.text)) for view in views]
    if len(rows) > MAX_VIEWS:
        raise ConfigError(NOT_SAVED, f"It would have more than {MAX_VIEWS} views.")
    for row in rows:
        if not (ADDRESS.fullmatch(row.address) and CHART.fullmatch(row.chart)):
            raise ConfigError(NOT_SAVED, "A view has no valid address of a page.")
        if len(row.text) > TEXT_LETTERS:
            raise ConfigError(NOT_SAVED, f"A line has at most {TEXT_LETTERS} characters.")
    return [asdict(row) for row in rows]


def _title(text: str) -> str:
    title = one_line(text)
    if not 0 < len(title) <= TITLE_LETTERS:
        raise ConfigError(NOT_SAVED, f"A title has 1 to {TITLE_LETTERS} characters.")
    return title
