"""Reading of GGUF headers in a child process, and conversion to folders that transformers loads.

Dequantized weights lie on the grid of the file, so quantization results on such a model can be too
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
from backend.models.sources.cache import UNKNOWN, CacheOrigin, Say, cached_value, silent
from backend.models.sources.headers import OPTIONS, exclusive_construction
from backend.models.sources.spec import check_no_adapter

READ_FUNCTION = "backend.models.sources.gguf_header:read_header"
METHODS = ("AWQ", "GPTQ", "imatrix")
PROGRESS_LINES = 10


def read_gguf(path: Path) -> tuple[dict[str, Any], dict[str, TensorHeader], CacheOrigin]:
    """Return config.json and the safetensors headers as after conversion, and the origin of the
    file. Raises ModelError: not a GGUF file, or an unsupported architecture."""
    check_no_adapter(path.parent)  # transformers would attach it during conversion
    try:
        state = path.stat()
        header = _read_header(path, state.st_size, state.st_mtime_ns)
    except (OSError, LimitedChildError) as error:
        raise _refused(path, str(error)) from error
    dtypes = {"F16": "F16", "BF16": "BF16"}  # other types need float32 to be exact
    tensors = {
        name: TensorHeader(tuple(shape), dtypes.get(type_, "F32"))
        for name, (shape, type_) in header["tensors"].items()
    }
    metadata = header["about"]
    link = re.fullmatch(r"https://huggingface\.co/([\w.-]+/[\w.-]+)", metadata["base_model"])
    texts = " ".join((path.stem, *metadata.values())).lower()
    methods = " and ".join(method for method in METHODS if method.lower() in texts)
    note = dequantized_note(header["kinds"], methods)
    origin = CacheOrigin(
        path.stem,
        note,
        str(path),
        metadata["license"] or UNKNOWN,
        path.stat().st_size,
        link[1] if link else "",
    )
    return header["config"], tensors, origin


@lru_cache(maxsize=64)
def _read_header(path: Path, size: int, modified_ns: int) -> dict[str, Any]:
    """Read the header of a file, once for all processes. The file is identified by its path, size
    and modification time: computing a checksum would take longer than reading the header."""
    # Another version of the reader may return more fields.
    reader_sha256 = sha256_of(Path(__file__).with_name("gguf_header.py"))
    state = [size, modified_ns, reader_sha256]
    return dict(cached_value(path, state, lambda: read(READ_FUNCTION, path)))


def dequantized_note(types: Mapping[str, Sequence[int]], methods: str = "") -> str:
    """Return a caveat on weights dequantized from GGUF.

    Args:
        types: tensor type, such as Q4_K -> (number of tensors, number of weights).
        methods: quantization methods that name or metadata mention, as "AWQ and GPTQ".
    """
    quantized = {type_: weights for type_, (_, weights) in types.items() if type_ not in DTYPES}
    methods_note = f"Its name or metadata mention {methods}." if methods else ""
    if not quantized:
        return methods_note
    main_type = max(quantized, key=quantized.__getitem__)
    bits = re.match(r"I?Q(\d)", main_type)
    grid = f"{'an' if bits[1] == '8' else 'a'} {bits[1]}-bit grid" if bits else "a coarse grid"
    share = sum(quantized.values()) / sum(weights for _, weights in types.values())
    by_weights = sorted(types, key=lambda type_: -types[type_][1])
    first, *further = (f"{type_} {types[type_][0]}" for type_ in by_weights)
    mix = ", ".join((f"{first} tensors", *further))
    return (
        f"dequantized from {main_type}: {100 * share:.0f} % of its weights are already rounded, "
        f"most to {grid} ({mix}). {methods_note}"
    ).strip()


@exclusive_construction
def convert(path: Path, folder: Path, say: Say = silent) -> None:
    """Convert a GGUF file to config, safetensors and tokenizer in `folder`.

    Each tensor gets the narrowest floating-point type that represents its values exactly. `say`:
    called with progress messages. Raises ModelError: transformers cannot read the file."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    auto: Any = AutoModelForCausalLM
    config_values = read_gguf(path)[0]
    with TemporaryDirectory() as parent:  # hides templates and adapters in the folder of the file
        (Path(parent) / path.name).symlink_to(path)
        source = {"pretrained_model_name_or_path": parent, "gguf_file": path.name, **OPTIONS}
        try:
            tokenizer = AutoTokenizer.from_pretrained(**source)
            config = AutoConfig.from_pretrained(**source)
            config = type(config).from_dict(config.to_dict() | config_values)
            with _reported_progress(say):
                model = auto.from_pretrained(**source, config=config, dtype=torch.float32)
        except Exception as error:  # transformers raises any exception for unsupported files
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
def _reported_progress(say: Say) -> Iterator[None]:
    """Report the number of dequantized tensors, about a minute for a gigabyte. Replaces the
    progress bar of transformers, which would be drawn into the log."""
    from transformers import modeling_gguf_pytorch_utils

    def reported(tensors: Sequence[Any], **_: Any) -> Iterator[Any]:
        for number, tensor in enumerate(tensors):
            lines = number * PROGRESS_LINES // len(tensors)
            if lines > (number - 1) * PROGRESS_LINES // len(tensors):
                say(f"dequantized {number} of {len(tensors)} tensors")
            yield tensor

    converter: Any = modeling_gguf_pytorch_utils
    progress_bar, converter.tqdm = converter.tqdm, reported
    try:
        yield
    finally:
        converter.tqdm = progress_bar


def _narrowest(values: Any) -> Any:
    """Return a tensor in the narrowest type that represents its values exactly."""
    import torch

    for dtype in (torch.bfloat16, torch.float16):
        for part in (values.flatten()[:4096], values):  # the first part suffices for most tensors
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
