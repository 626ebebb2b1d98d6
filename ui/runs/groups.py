"""Groups of the table of runs: runs of one sweep, of one model, or with one tag."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from backend.store.tables import run_name
from ui.runs.rows import RunRow

MAX_ROWS = 8  # rows shown of a model or tag


@dataclass(frozen=True)
class Group:
    """Rows that the table shows together.

    Attributes:
        rows: the rows in the order of the table.
        title: heading of the group; empty for a run alone.
        query: filter that finds all rows of the group.
        sweep: name of the sweep, which can be folded; empty for other groups.
        is_open: the rows are visible.
    """

    rows: Sequence[RunRow]
    title: str = ""
    query: str = ""
    sweep: str = ""
    is_open: bool = True

    @property
    def shown(self) -> Sequence[RunRow]:
        """The visible rows."""
        limit = len(self.rows) if self.sweep or not self.title else MAX_ROWS
        return self.rows[:limit] if self.is_open else ()


class Grouping(NamedTuple):
    """A way to group runs: its name on the screen, and the groups that a row belongs to."""

    title: str
    keys: Callable[[RunRow], Sequence[str]]
    missing: str = ""  # title of the group of rows without a key
    page_groups: int = 50  # groups on a page of the table


def sweep_name(row: RunRow) -> str:
    """The name of the first run of a row's sweep; empty for a run alone."""
    head = row.head
    return run_name(head.kind, head.sweep) if head.sweep else ""


GROUPINGS: Mapping[str, Grouping] = {
    "sweep": Grouping("Sweep", lambda row: (sweep_name(row),)),
    "model": Grouping(
        "Model", lambda row: (str(row.head.config.get("model", "")),), "No model", 10
    ),
    "tag": Grouping("Tag", lambda row: row.head.tags or ("",), "No tag", 10),
    "none": Grouping("Nothing", lambda _: ("",)),
}


def grouped(rows: Sequence[RunRow], by: str, open_sweeps: Collection[str]) -> list[Group]:
    """The groups of rows, each at the position of its first row."""
    grouping = GROUPINGS[by]
    members: dict[str | int, list[RunRow]] = {}
    for row in rows:
        for key in grouping.keys(row):
            alone = "" if grouping.missing else row.head.id
            members.setdefault(key or alone, []).append(row)
    if grouping.missing:
        return [
            Group(group, str(key) or grouping.missing, f'{by}="{key}"' if key else "")
            for key, group in members.items()
        ]
    return [
        Group(group, name, f"sweep={name}", name, name in open_sweeps)
        if len(group) > 1 and (name := str(key))
        else Group(group)
        for key, group in members.items()
    ]
