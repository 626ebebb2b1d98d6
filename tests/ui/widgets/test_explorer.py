"""What pages that look into one run share: the selection, its controls, and reading by mark."""

from dataclasses import dataclass

from backend.settings import Settings
from tests.ui.lab import asked
from ui.widgets.explorer import (
    Selection,
    cached_by,
)


@dataclass(frozen=True)
class Looks(Selection):
    stage: str = ""
    step: str = ""


def test_the_address_gives_the_selection() -> None:
    address = asked(run="sds-0001", stage="dense", step="4")
    assert Looks.from_address(address) == Looks("sds-0001", "dense", "4")
    assert Looks.from_address(asked(run="<b>")) == Looks()


def test_a_run_is_read_once_until_its_mark_changes(current: Settings) -> None:
    stored, reads = {"a": 1, "empty": 0}, []

    @cached_by(lambda run: (run, stored[run]) if run in stored else None)
    def read(run: str) -> int:
        reads.append(run)
        return stored[run]

    assert (read("a"), read("a"), read("empty"), read("none"), read("")) == (1, 1, None, None, None)
    stored["a"] = 2
    assert read("a") == 2 and reads == ["a", "a"]
