"""Download or convert a model once, and return the folder that transformers loads it from."""

from pathlib import Path

from backend.models.sources import hub, smollm2
from backend.models.sources.cache import Say, prepare_once, silent
from backend.models.sources.catalogue import local_folder
from backend.models.sources.folder import check_unchanged
from backend.models.sources.gguf.conversion import convert, read_gguf
from backend.models.sources.spec import gguf_name, is_hub_id, on_disk


def materialise(spec: str, say: Say = silent) -> Path:
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
