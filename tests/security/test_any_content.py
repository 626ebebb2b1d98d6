"""Whatever a file of a model holds, it is read or refused, and nothing else happens."""

import json
from contextlib import suppress
from pathlib import Path

import hypothesis
import pytest
from hypothesis import strategies as st

from backend.errors import ModelError
from backend.models.sources.catalog import inspect, require_loadable
from backend.models.sources.gguf_header import read_header
from backend.models.sources.spec import TOY_FOLDER
from tests.models.sources.test_gguf import write_toy

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.text(max_size=8) | st.sampled_from(["weight_map", "a"]), inner, max_size=3
        )
    ),
    max_leaves=8,
)
FUZZ = hypothesis.settings(derandomize=True)
CONFIG = json.loads((TOY_FOLDER / "config.json").read_text())
WEIGHTS = (TOY_FOLDER / "model.safetensors").read_bytes()
HEADER = json.loads(WEIGHTS[8 : 8 + int.from_bytes(WEIGHTS[:8], "little")])


def only_refuses(spec: Path) -> None:
    with suppress(ModelError):
        inspect(str(spec))


@FUZZ
@hypothesis.given(st.dictionaries(st.sampled_from([*CONFIG, "text_config", "num_experts"]), JSON))
def test_any_config(folder: Path, changes: dict) -> None:
    (folder / "config.json").write_text(json.dumps(CONFIG | changes))
    only_refuses(folder)


@FUZZ
@hypothesis.given(JSON.map(json.dumps).map(str.encode) | st.binary(max_size=50))
def test_any_content_of_a_json_file(folder: Path, content: bytes) -> None:
    (folder / "SOURCE.json").write_bytes(content)
    only_refuses(folder)
    (folder / "config.json").write_bytes(content)
    only_refuses(folder)


@FUZZ
@hypothesis.given(JSON | st.dictionaries(st.just("weight_map"), JSON, min_size=1))
def test_any_index(folder: Path, index: object) -> None:
    (folder / "model.safetensors").unlink(missing_ok=True)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    only_refuses(folder)


@FUZZ
@hypothesis.given(
    st.dictionaries(st.sampled_from([*HEADER]), JSON, max_size=3),
    st.none() | st.integers(0, 2**64 - 1),
)
def test_any_header_of_a_weight_file(folder: Path, changes: dict, length: int | None) -> None:
    header = json.dumps(HEADER | changes).encode()
    size = len(header) if length is None else length
    (folder / "model.safetensors").write_bytes(size.to_bytes(8, "little") + header + WEIGHTS[-9:])
    only_refuses(folder)


@hypothesis.settings(FUZZ, max_examples=8)
@hypothesis.given(JSON.map(json.dumps).map(str.encode) | st.binary(max_size=50))
def test_any_tokenizer(folder: Path, content: bytes) -> None:
    (folder / "tokenizer.json").write_bytes(content)
    with pytest.raises(ModelError):
        require_loadable(str(folder), 512)


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_toy(tmp_path_factory.mktemp("gguf") / "toy.gguf").read_bytes()


@FUZZ
@hypothesis.given(
    st.lists(st.tuples(st.integers(0, 600) | st.integers(0, 30_000), st.integers(0, 255))),
    st.none() | st.integers(0, 40_000),
)
def test_any_gguf_file(
    gguf_file: bytes, tmp_path: Path, changes: list[tuple[int, int]], end: int | None
) -> None:
    """In this process, so that many are read in seconds; the child has the same function."""
    content = bytearray(gguf_file)
    for place, byte in changes:
        content[place] = byte
    (tmp_path / "any.gguf").write_bytes(content[:end])
    with suppress(ModelError):
        read_header(tmp_path / "any.gguf")
