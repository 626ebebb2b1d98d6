"""Bundled example runs, which fill the dashboard on a first visit.

The examples are run files without weights, compressed with xz. They are named after their kind,
such as sds-example and sds-example-2. They are read-only, and can be deleted and restored like
other runs. Stories about them, and a recorded conversation with their models, are added and removed
together with them.
"""

import json
import lzma
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from backend.backup.run_rows import RowCheck
from backend.backup.single import import_run
from backend.errors import NotFoundError
from backend.queue import conversations, removal, stories
from backend.queue.actor import Actor
from backend.queue.conversations import Turn
from backend.queue.stories import StoryView
from backend.store import queries
from backend.store.session import writing
from backend.store.tables import EXAMPLE, Job

FOLDER = Path(__file__).parent / "example_runs"
PACKED_SUFFIX, STORIES, CONVERSATION = ".tar.xz", "stories.json", "conversation.json"
PACKAGE = Actor("slimscope", "host")  # owner of the examples


def bundled() -> dict[str, Path]:
    """Map the names of the example runs, such as sds-example, to their files."""
    return {example_name(_stem(file)): file for file in sorted(FOLDER.glob(f"*{PACKED_SUFFIX}"))}


def example_name(stem: str) -> str:
    """The name of the run in a file: sds -> sds-example, sds-2 -> sds-example-2."""
    kind, _, number = stem.partition("-")
    return f"{kind}-{EXAMPLE}" + (f"-{number}" if number else "")


def _stem(file: Path) -> str:
    return file.name.removesuffix(PACKED_SUFFIX)


def install_examples(check: RowCheck) -> list[Job]:
    """Add examples that were never installed; deleted examples stay deleted. `check`: see
    `import_run`."""
    if added := _add_missing(check):
        _write_stories()
        _write_conversation()
    return added


def remove_examples(actor: Actor) -> list[Job]:
    """Delete the example runs, their stories and the recorded conversation; return the runs."""
    removed = removal.remove([run for run in bundled() if _exists(run)], actor)
    for number in installed_stories().values():
        stories.delete_story(number, actor)
    if turn := recorded_turn():
        conversations.remove(turn.number, actor)
    return removed


def restore_examples(actor: Actor, check: RowCheck) -> list[Job]:
    """Restore deleted examples, and return the runs. `check`: see `import_run`."""
    existing = [run for run in bundled() if _exists(run)]
    purged = [run for run in existing if queries.job(run).purged]
    removal.forget(purged, actor)
    restored = removal.restore([run for run in existing if run not in purged], actor)
    added = _add_missing(check)
    _write_stories()
    _write_conversation()
    return [*restored, *added]


def bundled_stories() -> dict[str, list[StoryView]]:
    """Map the titles of the bundled stories to their views."""
    contents = json.loads((FOLDER / STORIES).read_text("utf-8"))
    return {
        title: [StoryView(position, **view) for position, view in enumerate(views, 1)]
        for title, views in contents.items()
    }


def installed_stories() -> dict[str, int]:
    """Map the titles of the bundled stories in the database to their numbers."""
    titles = bundled_stories().keys()
    return {
        story.title: story.id
        for story in stories.stories()
        if story.owner == PACKAGE.name and story.title in titles
    }


def _write_stories() -> None:
    existing = installed_stories()
    for title, views in bundled_stories().items():
        if title not in existing:
            stories.create_story(title, PACKAGE, views)


def recorded_turn() -> Turn | None:
    """The recorded prompt and its answers; None if it was deleted. The answers were generated one
    after the other."""
    return conversations.first_turn(PACKAGE.name)


def _write_conversation() -> None:
    if recorded_turn():
        return
    recorded = json.loads((FOLDER / CONVERSATION).read_text("utf-8"))
    prompt_text, settings = recorded["prompt"], recorded["settings"]
    with writing(durable=True) as session:
        conversation = conversations.begin(recorded["sides"], False, PACKAGE, session)
        prompt = conversations.add_prompt(
            session, conversation.id, None, prompt_text, settings, PACKAGE.name
        )
        conversation.created_at = prompt.at = recorded["at"]
        for side, rows in enumerate(recorded["answers"], 1):
            pieces = [text for row in rows for text, _ in row.get("tokens", ())]
            answer = "".join([*pieces, rows[-1]["rest"]])
            conversations.save_answer(prompt, side, answer, rows, session)


def _exists(run: str) -> bool:
    try:
        queries.job(run)
    except NotFoundError:
        return False
    return True


def _add_missing(check: RowCheck) -> list[Job]:
    added = []
    for run, file in bundled().items():
        if _exists(run):
            continue
        with TemporaryDirectory(prefix="slimscope-example-") as folder:
            archive = Path(folder, file.name.removesuffix(".xz"))
            with lzma.open(file) as packed, archive.open("wb") as unpacked:
                shutil.copyfileobj(packed, unpacked)
            number = int(_stem(file).partition("-")[2] or 1)
            added.append(import_run(archive, PACKAGE, check, example=number))
    return added
