"""The model catalog, the facts of a model before it is loaded, from config.json and the headers
of weight files, and the folder it is loaded from, downloaded or converted once. Does not import
torch."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from backend.errors import ModelError
from backend.limited import LimitedChildError, read
from backend.models.facts import ModelFacts, facts_from
from backend.models.families.stored import TensorHeader
from backend.models.sources import hub, smollm2
from backend.models.sources.cache import CacheOrigin, Say, kept, prepare_once, prepared, silent
from backend.models.sources.gguf import convert, read_gguf
from backend.models.sources.headers import read_config, read_headers, read_shapes
from backend.models.sources.quantized import NO_SHAPES, layout_in, rounded_share, unpacked
from backend.models.sources.spec import (
    TOY,
    TOY_FOLDER,
    check_folder,
    check_unchanged,
    gguf_name,
    is_hub_id,
    on_disk,
)
from backend.models.sources.tokenizer import check_tokenizer
from backend.settings import settings

BUILD = "backend.models.construction:check_construction"


@dataclass(frozen=True)
class CatalogEntry:
    """One entry of the model list."""

    name: str  # the model spec used in configs
    title: str
    note: str  # a caveat; may be empty
    origin: str  # source of the weights
    license: str  # of the weights
    ready: bool  # False if the model has to be set up first, or is refused
    refused: str = ""  # why it cannot be used at all; empty where it can


TOY_ENTRY = CatalogEntry(
    TOY,
    "Toy stories (built in)",
    "a toy: 0.2 million weights, trained on generated stories",
    "trained with backend/models/sources/toy/train.py",
    "same as Slimscope",
    True,
)


def entries() -> list[CatalogEntry]:
    """All available models: built-in, folders and files on disk, cached hub models."""
    cached = [
        _examined(hub_id, hub_id, f"https://huggingface.co/{hub_id}", "see its model card")
        for hub_id in hub.cached_ids()
    ]
    folder = prepared(smollm2.NAME)
    source = (CacheOrigin.read(folder) if folder else None) or smollm2.FROM_PACKAGE
    note = source.note if folder else "93 MB, downloaded and converted on first use"
    small = CatalogEntry(
        smollm2.NAME, source.title, note, source.origin, source.license, folder is not None
    )
    return [TOY_ENTRY, small, *_disk_entries(), *cached]


def local_folder(spec: str) -> Path | None:
    """The folder of a model that is on this machine, ready to load; None where it is not yet.
    Raises ModelError: outside the allowed folders, or no model."""
    if spec == TOY:
        return TOY_FOLDER
    if spec == smollm2.NAME:
        return prepared(spec)
    if is_hub_id(spec):
        return hub.cached(spec)
    path = on_disk(spec)
    return prepared(gguf_name(path)) if path.suffix == ".gguf" else path


def inspect(spec: str) -> ModelFacts:
    """The facts of a model, from its config and file headers only. Raises ModelError: unknown,
    unreachable, outside the allowed folders, or not supported; with `field="model"`."""
    if spec == TOY:
        return folder_facts(spec, TOY_FOLDER, CacheOrigin(TOY_ENTRY.title, TOY_ENTRY.note, "", ""))
    if folder := local_folder(spec):
        return folder_facts(spec, folder)
    if spec == smollm2.NAME:
        return smollm2.expected_facts()
    if is_hub_id(spec):
        return _facts(spec, *hub.looked_up(spec))
    path = on_disk(spec)
    config, headers, origin = read_gguf(path)
    facts = facts_from(spec, config, headers, origin.title, origin.note)
    return replace(facts, bytes=origin.bytes)


def require_loadable(spec: str, vocabulary: int) -> None:
    """Check that a model can be built and read text, as far as it can be known before it is loaded.
    Those that come with Slimscope or were converted by it can. Raises ModelError: it has no
    tokenizer, or one for another model; or transformers refuses its config or its tensors."""
    folder: Path | None = None
    if is_hub_id(spec):
        folder = hub.cached(spec)
    elif spec not in (TOY, smollm2.NAME) and not spec.endswith(".gguf"):
        folder = on_disk(spec)
    if folder:
        check_tokenizer(folder, vocabulary)
        _check_construction(_title(spec), folder)


def _check_construction(title: str, folder: Path) -> None:
    """Build the model without weights in a child process, once until a file of it changes. What a
    run here has saved was built so when it was saved."""
    if folder.is_relative_to(settings().artifacts.resolve()):
        return
    state = stamp(folder)
    try:
        kept(
            folder,
            [state, version("transformers")],
            lambda: read(BUILD, folder / "config.json", state),
        )
    except LimitedChildError as error:
        do = "Check its files against those of the original model."
        raise ModelError(f"{title} cannot be loaded.", str(error), do, field="model") from error


def dense_headers(spec: str, folder: Path) -> dict[str, TensorHeader]:
    """The headers of the tensors of a folder, as they are when unpacked."""
    headers, config = read_headers(folder), read_config(folder)
    if (packing := layout_in(spec, config)) is None:
        return headers
    return unpacked(spec, packing, config, headers, read_shapes(folder, headers))


def folder_facts(spec: str, folder: Path, source: CacheOrigin | None = None) -> ModelFacts:
    """The facts of the model in a folder; `source`: of one that comes with Slimscope."""
    check_folder(folder)
    source = source or CacheOrigin.read(folder) or CacheOrigin(_title(spec), "", "", "")
    headers = read_headers(folder)
    shapes = read_shapes(folder, headers)
    facts = _facts(spec, read_config(folder), headers, source.title, source.note, shapes)
    return replace(facts, bytes=source.bytes) if source.bytes else facts


def _facts(
    spec: str,
    config: dict[str, Any],
    headers: dict[str, TensorHeader],
    title: str = "",
    note: str = "",
    shapes: Mapping[str, tuple[int, ...]] = NO_SHAPES,
) -> ModelFacts:
    """The facts of a model, packed or not."""
    size = sum(header.bytes for header in headers.values())
    if (packing := layout_in(spec, config)) is None:
        return replace(facts_from(spec, config, headers, title, note), bytes=size)
    dense = unpacked(spec, packing, config, headers, shapes)
    share = rounded_share(headers, dense)
    told = f"packed as {packing}: {share:.0%} of its weights are already rounded".replace("%", " %")
    return replace(facts_from(spec, config, dense, title, note or told, str(packing)), bytes=size)


def _title(spec: str) -> str:
    return spec if is_hub_id(spec) else Path(spec).name


def _disk_entries() -> Iterator[CatalogEntry]:
    """Model folders and GGUF files, up to two levels deep in the user's model folders."""
    own = (settings().root / "models", *settings().model_dirs)
    for root in dict.fromkeys(path.expanduser().resolve() for path in own):
        configs = [
            path for depth in ("", "*/", "*/*/") for path in root.glob(f"{depth}config.json")
        ]
        whole = (x.parent for x in configs if not x.parent.name.startswith("."))  # no drafts
        folders = {folder for folder in whole if any(folder.glob("*.safetensors"))}
        found = (path for depth in ("", "*/") for path in root.glob(f"{depth}*.gguf"))
        files = [path for path in found if path.is_file()]  # and no link to nothing
        for path in sorted(folders) + sorted(files):
            yield _examined(str(path), path.name, str(path.parent), "see the files")


def _examined(spec: str, title: str, origin: str, license: str) -> CatalogEntry:
    """An entry of a model on this machine, with the reason if nothing can use it. A GGUF file that
    has not been converted is examined when it is chosen: parsing it takes a process."""
    path = hub.cached(spec) if is_hub_id(spec) else Path(spec)
    pending = spec.endswith(".gguf") and prepared(gguf_name(Path(spec))) is None
    refused, note = ("", "") if pending or path is None else _looked_at(spec, stamp(path))
    return CatalogEntry(spec, title, note, origin, license, not refused, refused)


@lru_cache(maxsize=256)
def _looked_at(spec: str, stamp: tuple[object, ...]) -> tuple[str, str]:
    """Why a model cannot be used ("" if it can), and what is known of its weights. `stamp`: of its
    files, as they are now."""
    try:
        return "", inspect(spec).note
    except ModelError as error:
        return error.why, ""
    except OSError as error:
        return f"{error}.", ""


def stamp(path: Path) -> tuple[object, ...]:
    """What changes when a model's files do."""
    try:
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        states = [(file, file.stat()) for file in files]
    except OSError as error:  # a link to nothing, or removed meanwhile
        return (str(error),)
    return tuple((file.name, state.st_size, state.st_mtime_ns) for file, state in states)


def materialize(spec: str, say: Say = silent) -> Path:
    """The folder the model is loaded from: config.json, *.safetensors, tokenizer.

    SmolLM2 and GGUF files are converted once, hub models are downloaded; both may take minutes.
    `say`: called with a message before a slow step. Raises ModelError: the model is not available,
    or its files have changed since they were saved."""
    folder = local_folder(spec) or _set_up(spec, say)
    check_unchanged(folder, contents=True)
    return folder


def _set_up(spec: str, say: Say) -> Path:
    if spec == smollm2.NAME:
        return smollm2.set_up(say)
    if is_hub_id(spec):
        say(f"downloading {spec}")
        return hub.download(spec)
    path = on_disk(spec)
    _, headers, origin = read_gguf(path)

    def fill(draft: Path) -> None:
        say(f"converting {path.name} to safetensors, once")
        convert(path, draft, say)
        origin.write(draft)

    return prepare_once(gguf_name(path), 4 * sum(each.elements for each in headers.values()), fill)
