"""Catalog of models: the list of available models, their facts from config.json and the headers of
weight files, and the folder that a model is loaded from, after a download or conversion if
necessary. Does not import torch.
"""

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
from backend.models.sources import hub
from backend.models.sources.cache import (
    CacheOrigin,
    Say,
    cached_value,
    prepare_once,
    prepared,
    silent,
)
from backend.models.sources.gguf import convert, read_gguf
from backend.models.sources.headers import read_config, read_headers, read_shapes, weight_files
from backend.models.sources.quantized import NO_SHAPES, parse_layout, rounded_share, unpacked
from backend.models.sources.shipped import SHIPPED, ShippedModel
from backend.models.sources.spec import (
    TOY,
    TOY_FOLDER,
    check_folder,
    check_unchanged,
    gguf_folder_name,
    is_hub_id,
    resolve_model_path,
)
from backend.models.sources.tokenizer import check_tokenizer
from backend.settings import settings

CHECK_FUNCTION = "backend.models.construction:check_construction"


@dataclass(frozen=True)
class CatalogEntry:
    """An entry of the model list.

    Attributes:
        name: the model spec used in configs.
        title: name for display.
        note: a caveat; may be empty.
        origin: source of the weights.
        license: license of the weights.
        ready: False if the model must be set up first, or cannot be used.
        refused: reason why the model cannot be used; empty if it can.
    """

    name: str
    title: str
    note: str
    origin: str
    license: str
    ready: bool
    refused: str = ""


TOY_ENTRY = CatalogEntry(
    TOY,
    "Toy stories (built in)",
    "a toy: 0.2 million weights, trained on generated stories",
    "trained with benchmarks/toy.py",
    "same as Slimscope",
    True,
)


def entries() -> list[CatalogEntry]:
    """List all available models: built-in models, folders and files on disk, cached Hub models."""
    cached = [
        _entry(hub_id, hub_id, f"https://huggingface.co/{hub_id}", "see its model card")
        for hub_id in hub.cached_ids()
    ]
    return [TOY_ENTRY, *map(_shipped_entry, SHIPPED.values()), *_disk_entries(), *cached]


def local_folder(spec: str) -> Path | None:
    """Return the folder of a model that is ready to load on this machine, or None. Raises
    ModelError: the path is outside the allowed folders, or is not a model."""
    if spec == TOY:
        return TOY_FOLDER
    if spec in SHIPPED:
        return prepared(spec)
    if is_hub_id(spec):
        return hub.cached(spec)
    path = resolve_model_path(spec)
    return prepared(gguf_folder_name(path)) if path.suffix == ".gguf" else path


def inspect(spec: str) -> ModelFacts:
    """Return the facts of a model, from its config and file headers only. Raises ModelError, with
    `field="model"`: the model is unknown, unreachable, unsupported, or outside the allowed folders.
    """
    if spec == TOY:
        return folder_facts(spec, TOY_FOLDER, CacheOrigin(TOY_ENTRY.title, TOY_ENTRY.note, "", ""))
    if folder := local_folder(spec):
        return folder_facts(spec, folder)
    if spec in SHIPPED:
        return SHIPPED[spec].expected_facts()
    if is_hub_id(spec):
        return _facts(spec, *hub.cached_headers(spec))
    path = resolve_model_path(spec)
    config, headers, origin = read_gguf(path)
    facts = facts_from(spec, config, headers, origin.title, origin.note)
    return replace(facts, bytes=origin.bytes)


def require_loadable(spec: str, vocabulary: int) -> None:
    """Check before loading that a model can be built and has a matching tokenizer. Models that come
    with Slimscope, and GGUF files, are not checked. Raises ModelError: the tokenizer is missing or
    belongs to another model, or transformers rejects the config or the tensors."""
    folder: Path | None = None
    if is_hub_id(spec):
        folder = hub.cached(spec)
    elif spec not in (TOY, *SHIPPED) and not spec.endswith(".gguf"):
        folder = resolve_model_path(spec)
    if folder:
        check_tokenizer(folder, vocabulary)
        _check_construction(_title(spec), folder)


def _check_construction(title: str, folder: Path) -> None:
    """Build the model without weights in a child process. The result is cached until a file
    changes. Models saved by a run are not checked, because they were built when they were saved."""
    if folder.is_relative_to(settings().artifacts.resolve()):
        return
    state = file_state(folder)
    largest = max((path.stat().st_size for path in weight_files(folder)), default=0)
    try:
        cached_value(
            folder,
            [state, version("transformers")],
            lambda: read(CHECK_FUNCTION, folder / "config.json", state, largest),
        )
    except LimitedChildError as error:
        do = "Compare its files with those of the original model."
        raise ModelError(f"{title} cannot be loaded.", str(error), do, field="model") from error


def dense_headers(spec: str, folder: Path) -> dict[str, TensorHeader]:
    """Return the tensor headers of a folder, with dense weights instead of packed ones."""
    headers, config = read_headers(folder), read_config(folder)
    if (packing := parse_layout(spec, config)) is None:
        return headers
    return unpacked(spec, packing, config, headers, read_shapes(folder, headers))


def folder_facts(spec: str, folder: Path, source: CacheOrigin | None = None) -> ModelFacts:
    """Return the facts of the model in a folder. `source`: its origin, if that is not stored in the
    folder."""
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
    """Return the facts of a model with dense or packed weights."""
    size = sum(header.bytes for header in headers.values())
    if (packing := parse_layout(spec, config)) is None:
        return replace(facts_from(spec, config, headers, title, note), bytes=size)
    dense = unpacked(spec, packing, config, headers, shapes)
    share = rounded_share(headers, dense)
    note = note or f"packed as {packing}: {100 * share:.0f} % of its weights are already rounded"
    return replace(facts_from(spec, config, dense, title, note, str(packing)), bytes=size)


def _title(spec: str) -> str:
    return spec if is_hub_id(spec) else Path(spec).name


def _disk_entries() -> Iterator[CatalogEntry]:
    """Find model folders and GGUF files, up to two levels deep in the user's model folders."""
    model_dirs = (settings().root / "models", *settings().model_dirs)
    for root in dict.fromkeys(path.expanduser().resolve() for path in model_dirs):
        configs = (
            path for level in ("", "*/", "*/*/") for path in root.glob(f"{level}config.json")
        )
        folders = {
            path.parent
            for path in configs
            if not path.parent.name.startswith(".")  # hidden folders are incomplete
            and any(path.parent.glob("*.safetensors"))
        }
        gguf_paths = (path for level in ("", "*/") for path in root.glob(f"{level}*.gguf"))
        files = [path for path in gguf_paths if path.is_file()]  # skips broken links
        for path in sorted(folders) + sorted(files):
            yield _entry(str(path), path.name, str(path.parent), "see the files")


def _shipped_entry(model: ShippedModel) -> CatalogEntry:
    folder = prepared(model.name)
    source = (CacheOrigin.read(folder) if folder else None) or model.from_package
    note = source.note if folder else model.note
    return CatalogEntry(
        model.name, source.title, note, source.origin, source.license, folder is not None
    )


def _entry(spec: str, title: str, origin: str, license: str) -> CatalogEntry:
    """Create the entry of a model on this machine, with the reason if it cannot be used. A GGUF
    file that was not converted yet is inspected only when it is chosen, because this starts a child
    process."""
    path = hub.cached(spec) if is_hub_id(spec) else Path(spec)
    is_unconverted = spec.endswith(".gguf") and prepared(gguf_folder_name(Path(spec))) is None
    refused, note = "", ""
    if path is not None and not is_unconverted:
        refused, note = _inspect_once(spec, file_state(path))
    return CatalogEntry(spec, title, note, origin, license, not refused, refused)


@lru_cache(maxsize=256)
def _inspect_once(spec: str, state: tuple[object, ...]) -> tuple[str, str]:
    """Return the reason why a model cannot be used ("" if it can), and the note on its weights.
    `state` is part of the cache key."""
    try:
        return "", inspect(spec).note
    except ModelError as error:
        return error.why, ""
    except OSError as error:
        return f"{error}.", ""


def file_state(path: Path) -> tuple[object, ...]:
    """Return the names, sizes and modification times of a model's files, to detect changes."""
    try:
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        states = [(file, file.stat()) for file in files]
    except OSError as error:  # a broken link, or a file that was just removed
        return (str(error),)
    return tuple((file.name, state.st_size, state.st_mtime_ns) for file, state in states)


def materialize(spec: str, say: Say = silent) -> Path:
    """Return the folder that a model is loaded from, with config.json, *.safetensors and tokenizer.

    Shipped models and GGUF files are converted once, Hub models are downloaded; both take minutes.
    `say`: called with a message before each slow step. Raises ModelError: the model is unavailable,
    or its files have changed since they were saved."""
    folder = local_folder(spec) or _set_up(spec, say)
    check_unchanged(folder, contents=True)
    return folder


def _set_up(spec: str, say: Say) -> Path:
    if spec in SHIPPED:
        return SHIPPED[spec].set_up(say)
    if is_hub_id(spec):
        say(f"downloading {spec}")
        return hub.download(spec)
    path = resolve_model_path(spec)
    _, headers, origin = read_gguf(path)

    def fill(draft: Path) -> None:
        say(f"converting {path.name} to safetensors, once")
        convert(path, draft, say)
        origin.write(draft)

    needed_bytes = 4 * sum(header.elements for header in headers.values())  # in float32
    return prepare_once(gguf_folder_name(path), needed_bytes, fill)
