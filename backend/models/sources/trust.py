"""Recognition of tokenizers that come with Slimscope. They run in the process itself; all others
run in a limited child (`backend.models.foreign_tokenizer`), with a round trip per token. Does not
import torch."""

import json
from functools import lru_cache
from hashlib import sha256
from pathlib import Path

from backend.models.sources.cache import prepared
from backend.models.sources.shipped import SHIPPED
from backend.models.sources.spec import TOY, TOY_FOLDER

CONFIG_FILE = "tokenizer_config.json"
TOKENIZER_FILES = (  # every file that transformers may read a tokenizer from
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
)
TEMPLATE_FOLDER = "additional_chat_templates"
LOADING_OPTIONS = ("is_local", "local_files_only")  # added by `save_pretrained`
MAX_BYTES = 2**26


def has_shipped_tokenizer(source: str) -> bool:
    """Return True if `source`, a model's spec or folder, has a tokenizer that comes with Slimscope:
    a shipped model, or a folder with the same tokenizer files, such as that of a run on one."""
    shipped = (TOY_FOLDER, *map(prepared, SHIPPED))
    if source in (TOY, *SHIPPED, *map(str, shipped)):
        return True
    digest = _tokenizer_digest(Path(source))
    return bool(digest) and any(digest == _tokenizer_digest(folder) for folder in shipped if folder)


def _tokenizer_digest(folder: Path) -> str:
    """Return a hex sha256 over the tokenizer files of a folder; "" if they cannot be read or are
    larger than `MAX_BYTES`. Read again only after a file has changed."""
    names = [name for name in (*TOKENIZER_FILES, CONFIG_FILE) if (folder / name).exists()]
    try:
        stats = [(folder / name).stat() for name in names]
    except OSError:
        return ""
    if (folder / TEMPLATE_FOLDER).exists() or sum(stat.st_size for stat in stats) > MAX_BYTES:
        return ""
    states = tuple((stat.st_size, stat.st_mtime_ns, stat.st_ino) for stat in stats)
    return _digest(folder, tuple(names), states)


@lru_cache(maxsize=32)
def _digest(folder: Path, names: tuple[str, ...], states: tuple[tuple[int, int, int], ...]) -> str:
    digest = sha256()
    try:
        for name in names:
            content = (folder / name).read_bytes()
            if name == CONFIG_FILE:
                config = json.loads(content)
                options = {key: x for key, x in config.items() if key not in LOADING_OPTIONS}
                content = json.dumps(options, sort_keys=True).encode()
            digest.update(f"{name}\0{sha256(content).hexdigest()}\0".encode())
    except (OSError, ValueError, AttributeError, RecursionError):
        return ""
    return digest.hexdigest() if CONFIG_FILE in names else ""
