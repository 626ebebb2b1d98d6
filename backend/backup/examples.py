"""Finished runs that come with the package, so that a first visit has something to see: exported
without weights, packed with xz. They are named after their kind, such as sds-example and
sds-example-2, are read-only, and can be deleted and restored like any other run. Reports about them
and a recorded conversation with their models come and go with them."""

import json
import lzma
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from backend.backup.run_rows import Check
from backend.backup.single import import_run
from backend.errors import NotFoundError
from backend.queue import conversations, removal, reports
from backend.queue.actor import Actor
from backend.queue.conversations import Turn
from backend.queue.reports import ReportBlock
from backend.store import queries
from backend.store.session import writing
from backend.store.tables import EXAMPLE, Job

FOLDER = Path(__file__).parent / "example_runs"
PACKED, REPORTS, CONVERSATION = ".tar.xz", "reports.json", "conversation.json"
PACKAGE = Actor("slimscope", "host")  # who adds them


def bundled() -> dict[str, Path]:
    """Name of a run, such as sds-example -> the file that holds it."""
    return {example_name(_stem(file)): file for file in sorted(FOLDER.glob(f"*{PACKED}"))}


def example_name(stem: str) -> str:
    """Name of the run in a file such as sds or, of the second of its kind, sds-2."""
    kind, _, place = stem.partition("-")
    return f"{kind}-{EXAMPLE}" + (f"-{place}" if place else "")


def _stem(file: Path) -> str:
    return file.name.removesuffix(PACKED)


def install_examples(check: Check) -> list[Job]:
    """Add the examples that are not there; deleted ones stay deleted. `check`: see `import_run`."""
    if added := _add_missing(check):
        _write_reports()
        _write_conversation()
    return added


def remove_examples(actor: Actor) -> list[Job]:
    removed = removal.remove([run for run in bundled() if _known(run)], actor)
    for number in _reports().values():
        reports.delete_report(number, actor)
    if turn := recorded_turn():
        conversations.remove(turn.number, actor)
    return removed


def restore_examples(actor: Actor, check: Check) -> list[Job]:
    """Bring deleted examples back. `check`: see `import_run`."""
    known = [run for run in bundled() if _known(run)]
    purged = [run for run in known if queries.job(run).purged]
    removal.forget(purged, actor)
    restored = removal.restore([r for r in known if r not in purged], actor)
    added = _add_missing(check)
    _write_reports()
    _write_conversation()
    return [*restored, *added]


def bundled_reports() -> dict[str, list[ReportBlock]]:
    """Title of a report -> its blocks."""
    stored = json.loads((FOLDER / REPORTS).read_text("utf-8"))
    return {
        title: [ReportBlock(place, **block) for place, block in enumerate(blocks, 1)]
        for title, blocks in stored.items()
    }


def _reports() -> dict[str, int]:
    """The bundled reports that are there: title -> number."""
    ours = bundled_reports()
    there = [each for each in reports.reports() if each.owner == PACKAGE.name]
    return {each.title: each.id for each in there if each.title in ours}


def _write_reports() -> None:
    there = _reports()
    for title, blocks in bundled_reports().items():
        if title not in there:
            reports.create_report(title, PACKAGE, blocks)


def recorded_turn() -> Turn | None:
    """The recorded prompt and its answers, written one after the other; None if deleted."""
    return conversations.first_turn(PACKAGE.name)


def _write_conversation() -> None:
    if recorded_turn():
        return
    stored = json.loads((FOLDER / CONVERSATION).read_text("utf-8"))
    asked, settings, author = stored["prompt"], stored["settings"], PACKAGE.name
    with writing(durable=True) as session:
        begun = conversations.begin(stored["sides"], False, PACKAGE, session)
        prompt = conversations.add_prompt(session, begun.id, None, asked, settings, author)
        begun.created_at = prompt.at = stored["at"]
        for side, rows in enumerate(stored["answers"], 1):
            pieces = [text for row in rows for text, _ in row.get("tokens", ())]
            text = "".join([*pieces, rows[-1]["rest"]])
            conversations.save_answer(prompt, side, text, rows, session)


def _known(run: str) -> bool:
    try:
        queries.job(run)
    except NotFoundError:
        return False
    return True


def _add_missing(check: Check) -> list[Job]:
    return [_install(file, check) for run, file in bundled().items() if not _known(run)]


def _install(file: Path, check: Check) -> Job:
    with TemporaryDirectory(prefix="slimscope-example-") as folder:
        archive = Path(folder, file.name.removesuffix(".xz"))
        with lzma.open(file) as packed, archive.open("wb") as unpacked:
            shutil.copyfileobj(packed, unpacked)
        place = int(_stem(file).partition("-")[2] or 1)
        return import_run(archive, PACKAGE, check, example=place)
