"""What a run left, as HTML: its disk space, folders and files, how a model is loaded, what can be
downloaded."""

from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from backend.queue.actor import Actor
from backend.queue.artifacts.disk import disk_use
from backend.settings import settings
from backend.store.tables import Artifact, Job
from ui.format import size
from ui.runs.actions.single import free_button
from ui.templates import fragments
from ui.widgets.download import AT_MOST

HTML = fragments("pages/run/page.html")
MAX_FILES = 200
LOAD = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained({path!r})
tokenizer = AutoTokenizer.from_pretrained({path!r})"""


def disk_card(job: Job, user: Actor) -> Markup:
    use = disk_use(job.run)
    if not use:
        return Markup()
    total = {"Total": size(sum(use.values()))} if len(use) > 1 else {}
    parts = {_title(part): size(length) for part, length in use.items()}
    return HTML.disk(parts | total, free_button(job, use, user))


def artefacts(run: str, rows: Sequence[Artifact]) -> Markup:
    return Markup().join(_artefact(run, row) for row in rows)


def _title(name: str) -> str:
    return name[:1].upper() + name[1:]


def _artefact(run: str, row: Artifact) -> Markup:
    path = settings().artifacts / row.path
    return HTML.artefact(
        _title(row.kind),
        str(path),
        size(row.bytes),
        row.sha256,
        not path.exists(),
        LOAD.format(path=str(path)) if row.kind == "model" else "",
        run,
        _files(run, row),
    )


def _files(run: str, row: Artifact) -> list[list[str]]:
    """Files with their sizes, and downloads of the small ones."""
    root = settings().artifacts.resolve()
    path = (root / row.path).resolve()
    if not path.is_relative_to(root) or not path.exists():
        return []
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return [_file(run, file, path, root) for file in files[:MAX_FILES]]


def _file(run: str, file: Path, artefact: Path, root: Path) -> list[str]:
    name = file.relative_to(artefact) if file != artefact else file.name
    length = file.stat().st_size
    limit = size(AT_MOST) if length > AT_MOST else ""
    return [
        HTML.file_name(name), size(length), HTML.download(run, str(file.relative_to(root)), limit)
    ]  # fmt: skip
