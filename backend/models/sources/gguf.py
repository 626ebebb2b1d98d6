"""GGUF headers, read in a child process, and conversion to folders that transformers loads.
Dequantized weights lie on the grid of the file: quantization results on such a model can be too
optimistic.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from backend.checkpoints import sha256_of
from backend.errors import ModelError
from backend.limited import LimitedChildError, read
from backend.models.facts import DTYPES
from backend.models.families.stored import TensorHeader
from backend.models.sources.cache import UNKNOWN, CacheOrigin, Say, kept, silent
from backend.models.sources.headers import OPTIONS, alone
from backend.models.sources.spec import check_no_adapter

READER = "backend.models.sources.gguf_header:read_header"
METHODS = ("AWQ", "GPTQ", "imatrix")
REPORTS = 10  # lines of progress


def read_gguf(path: Path) -> tuple[dict[str, Any], dict[str, TensorHeader], CacheOrigin]:
    """config.json and safetensors headers as after conversion, and what the file tells of its
    origin. Raises ModelError: not a GGUF file, or an unsupported architecture."""
    check_no_adapter(path.parent)  # transformers would attach it while converting
    try:
        state = path.stat()
        header = _header(path, state.st_size, state.st_mtime_ns)
    except (OSError, LimitedChildError) as error:
        raise _refused(path, str(error)) from error
    dtypes = {"F16": "F16", "BF16": "BF16"}  # all others need float32 to be exact
    tensors = {
        name: TensorHeader(tuple(shape), dtypes.get(kind, "F32"))
        for name, (shape, kind) in header["tensors"].items()
    }
    about, kinds = header["about"], header["kinds"]
    link = re.fullmatch(r"https://huggingface\.co/([\w.-]+/[\w.-]+)", about["base_model"])
    note = dequantized_note(kinds, rounding_methods(path.stem, *about.values()))
    origin = CacheOrigin(
        path.stem,
        note,
        str(path),
        about["license"] or UNKNOWN,
        path.stat().st_size,
        link[1] if link else "",
    )
    return header["config"], tensors, origin


@lru_cache(maxsize=64)
def _header(path: Path, size: int, changed: int) -> dict[str, Any]:
    """The header of a file, kept in the cache folder so that it is read once, not once a process.
    It is known by path, size and time of change: a checksum would read gigabytes, which takes
    longer than reading the header."""
    reader = sha256_of(Path(__file__).with_name("gguf_header.py"))  # another one may answer more
    header = kept(path, [size, changed, reader], lambda: read(READER, path))
    return dict(header)


def dequantized_note(kinds: Mapping[str, Sequence[int]], methods: str = "") -> str:
    """A caveat on weights dequantized from GGUF. `kinds`: type, such as Q4_K -> number of tensors,
    and of their weights; `methods`: see `rounding_methods`."""
    rounded = {kind: weights for kind, (_, weights) in kinds.items() if kind not in DTYPES}
    told = f"Its name or metadata mention {methods}." if methods else ""
    if not rounded:
        return told
    main = max(rounded, key=rounded.__getitem__)
    bits = re.match(r"I?Q(\d)", main)
    grid = f"{'an' if bits[1] == '8' else 'a'} {bits[1]}-bit grid" if bits else "a coarse grid"
    share = sum(rounded.values()) / sum(weights for _, weights in kinds.values())
    order = sorted(kinds, key=lambda kind: -kinds[kind][1])
    first, *others = (f"{kind} {kinds[kind][0]}" for kind in order)
    mix = ", ".join((f"{first} tensors", *others))
    note = f"dequantized from {main}: {100 * share:.0f} % of its weights are already rounded, most "
    return f"{note}to {grid} ({mix}). {told}".strip()


def rounding_methods(*texts: str) -> str:
    """Methods of quantization that names or metadata mention."""
    return " and ".join(m for m in METHODS if any(m.lower() in text.lower() for text in texts))


@alone
def convert(path: Path, folder: Path, say: Say = silent) -> None:
    """Write the model in GGUF file `path` to `folder`: config, safetensors, tokenizer. Each tensor
    has the narrowest floating-point type that holds its values exactly. `say`: called with the
    progress. Raises ModelError: transformers cannot read the file."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    auto: Any = AutoModelForCausalLM
    own = read_gguf(path)[0]
    with TemporaryDirectory() as alone:  # or templates and adapters beside the file are read, too
        (Path(alone) / path.name).symlink_to(path)
        source = {"pretrained_model_name_or_path": alone, "gguf_file": path.name, **OPTIONS}
        try:
            tokenizer = AutoTokenizer.from_pretrained(**source)
            config = AutoConfig.from_pretrained(**source)
            config = type(config).from_dict(config.to_dict() | own)
            with _dequantizing(say):
                model = auto.from_pretrained(**source, config=config, dtype=torch.float32)
        except Exception as error:  # unsupported files fail in transformers with any exception
            raise _refused(path, f"transformers cannot convert it: {error}.") from error
    model.hf_quantizer, model.is_quantized = None, False  # otherwise save_pretrained raises
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    for parameter in model.parameters():
        parameter.data = _narrowest(parameter.data)
    say(f"writing {sum(p.nbytes for p in model.parameters()) / 1e6:.0f} MB")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@contextmanager
def _dequantizing(say: Say) -> Iterator[None]:
    """Says how many tensors transformers has dequantized, which takes a minute for a gigabyte;
    its own bar would be drawn into the log."""
    from transformers import modeling_gguf_pytorch_utils

    def counted(tensors: Sequence[Any], **_: Any) -> Iterator[Any]:
        for number, tensor in enumerate(tensors):
            if number * REPORTS // len(tensors) > (number - 1) * REPORTS // len(tensors):
                say(f"dequantized {number} of {len(tensors)} tensors")
            yield tensor

    converter: Any = modeling_gguf_pytorch_utils
    own, converter.tqdm = converter.tqdm, counted
    try:
        yield
    finally:
        converter.tqdm = own


def _narrowest(values: Any) -> Any:
    """A tensor in the narrowest type that holds its values."""
    import torch

    for dtype in (torch.bfloat16, torch.float16):
        for part in (values.flatten()[:4096], values):  # of most tensors the first suffices
            if not torch.equal(part.to(dtype).to(part.dtype), part):
                break
        else:
            return values.to(dtype)
    return values


def _refused(path: Path, why: str) -> ModelError:
    return ModelError(
        f"{path.name} cannot be used.",
        why,
        "Choose a GGUF file of a dense LLaMA-like model.",
        "model",
    )
