"""Copies on this machine of what is in the store."""

import logging
from pathlib import Path

from backend.checkpoints import MANIFEST
from backend.queue.artifacts.store import ArtifactStore, reaching, store
from backend.queue.folders import log_file, run_folder, work_folder
from backend.settings import settings

log = logging.getLogger("slimscope.store")
WORKED_HERE = ".attempt"  # number of the last attempt on this machine, beside its checkpoints


def key_of(path: Path) -> str:
    """What the store calls a path below the folder of the artefacts."""
    return path.relative_to(settings().artifacts).as_posix()


@reaching()
def present(folder: Path) -> Path:
    """A folder that a run has saved, on this machine: copied here if it is not."""
    kept = store()
    if kept is not None and not (folder / MANIFEST).is_file():
        kept.get_folder(key_of(folder), folder)
    return folder


@reaching()
def fetch_work(run: str, attempt: int, loose: str) -> None:
    """Copy the checkpoints of a run that an attempt on another machine has left, and the file
    `loose` beside them, for the next `attempt`. Those of this machine may be newer."""
    if (kept := store()) is None:
        return
    work = work_folder(run)
    last, work_file = str(attempt - 1), work / WORKED_HERE
    was_here = work_file.exists() and work_file.read_text() == last
    work.mkdir(parents=True, exist_ok=True)
    for name in () if was_here else kept.names(key_of(work)):
        if name == loose:
            kept.get_file(key_of(work / loose), work / loose)
        elif name.endswith("/") and not name.startswith("."):
            kept.get_folder(key_of(work / name), work / name.rstrip("/"))
    work_file.write_text(str(attempt))


@reaching()
def fetch_ended(run: str) -> None:
    """Copy what a run has left, but for its checkpoints: pages show it from here."""
    if (kept := store()) is None:
        return
    folder, own = run_folder(run), f"{work_folder(run).name}/"
    for name in kept.names(run):
        if name != own:
            _fetch(kept, folder / name.rstrip("/"), is_folder=name.endswith("/"))


def _fetch(kept: ArtifactStore, path: Path, is_folder: bool) -> None:
    key = key_of(path)
    if not is_folder:
        if not path.exists() or path.stat().st_size != kept.size(key):
            kept.get_file(key, path)
    elif not kept.get_folder(key, path):
        for name in kept.names(key):
            _fetch(kept, path / name.rstrip("/"), is_folder=name.endswith("/"))


@reaching()
def fetch_log(run: str, attempt: int) -> None:
    """Copy the log of an attempt at work, if it has grown."""
    if (kept := store()) is None:
        return
    file = log_file(run, attempt)
    size = kept.size(key_of(file))
    if size is not None and size > (file.stat().st_size if file.exists() else 0):
        kept.get_file(key_of(file), file)


def remove_stored(path: Path) -> None:
    """Delete from the store what was deleted here. Where it does not answer, that is left there."""
    if (kept := store()) is None:
        return
    try:
        with reaching():
            kept.remove(key_of(path))
    except OSError as error:
        log.warning("%s stays in the store: %s", key_of(path), error)
