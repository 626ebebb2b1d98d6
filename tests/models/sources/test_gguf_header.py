"""Headers of GGUF files: a large vocabulary is counted, not read; a header is read once."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from backend.errors import ModelError
from backend.models.sources import gguf as source
from backend.models.sources.catalog import inspect
from backend.models.sources.gguf_header import HeaderReader, read_header
from backend.settings import Settings, settings
from tests.models.sources.test_gguf import Kind, write_toy

VOCABULARY = 262_144  # as of Gemma 3
READS = 2_000  # of numbers and arrays: more than fields and tensors need, less than strings would


def write_large(path: Path, tokens: int, order: gguf.GGUFEndian = gguf.GGUFEndian.LITTLE) -> Path:
    """One block with a vocabulary of so many tokens, and as many merges, scores and types."""
    writer = gguf.GGUFWriter(path, "llama", endianess=order)
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(4)
    writer.add_head_count(1)
    writer.add_token_list([f"token-{number}" for number in range(tokens)])
    writer.add_token_merges([f"to ken-{number}" for number in range(tokens)])
    writer.add_token_scores([0.5] * tokens)
    writer.add_token_types([1] * tokens)
    writer.add_description("behind them")
    writer.add_tensor("token_embd.weight", np.zeros((VOCABULARY, 4), np.float32))
    writer.add_tensor("blk.0.attn_q.weight", np.zeros((4, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_large_vocabulary_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many tokens as embeddings are accepted, more are not, and no string is read."""
    reads: list[int] = []
    get = HeaderReader._get

    def counted(self: HeaderReader, offset: int, *rest: Any, **named: Any) -> Any:
        reads.append(offset)
        return get(self, offset, *rest, **named)

    monkeypatch.setattr(HeaderReader, "_get", counted)
    header = read_header(write_large(tmp_path / "large.gguf", VOCABULARY))
    assert header["config"]["vocab_size"] == VOCABULARY
    assert header["about"]["description"] == "behind them"
    assert len(reads) < READS
    for wrong in (VOCABULARY + 1, 0):
        with pytest.raises(ModelError) as refused:
            read_header(write_large(tmp_path / "wrong.gguf", wrong))
        assert "no tokenizer" in refused.value.why
    assert len(reads) < 3 * READS


def test_a_file_of_the_other_byte_order_is_read(tmp_path: Path) -> None:
    header = read_header(write_large(tmp_path / "big.gguf", 300, gguf.GGUFEndian.BIG))
    assert header["about"]["description"] == "behind them"


def test_arrays_have_the_values_of_the_file(tmp_path: Path) -> None:
    """As the reader of the package reads them, element by element."""
    path = write_large(tmp_path / "it.gguf", 300)
    mine, theirs = HeaderReader(path), gguf.GGUFReader(path)
    assert mine.strings("tokenizer.ggml.tokens") == len(theirs.fields["tokenizer.ggml.tokens"].data)
    for name, field in theirs.fields.items():
        if gguf.GGUFValueType.STRING not in field.types[1:]:
            assert mine.fields[name].contents() == field.contents(), name


@pytest.fixture
def file(current: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SLIMSCOPE_CACHE_DIR", str(tmp_path / "cache"))
    settings.cache_clear()
    return write_toy(current.root / "models" / "toy.gguf")


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Files whose headers have been read."""
    files: list[Path] = []
    limited = source.read

    def noted(parser: str, path: Path) -> Any:
        files.append(path)
        return limited(parser, path)

    monkeypatch.setattr(source, "read", noted)
    return files


def in_another_process(file: Path) -> Any:
    """The facts as a process finds them that has read nothing yet."""
    source._header.cache_clear()
    return inspect(str(file))


def test_a_header_is_read_once_until_the_file_changes(file: Path, read: list[Path]) -> None:
    facts = in_another_process(file)
    assert facts == in_another_process(file) == inspect(str(file)) and len(read) == 1
    write_toy(file, Kind.Q8_0)
    assert in_another_process(file).note and len(read) == 2
    assert in_another_process(file).note and len(read) == 2
    (kept,) = (settings().cache_dir / "read").iterdir()  # of one file, one
    assert kept.suffix == ".json"


@pytest.mark.parametrize("content", ["", "{", "[]", "[1, 2, 3]", '["", {}]', "null", "\0"])
def test_a_damaged_record_is_not_used(file: Path, read: list[Path], content: str) -> None:
    facts = in_another_process(file)
    (kept,) = (settings().cache_dir / "read").iterdir()
    kept.write_text(content)
    assert in_another_process(file) == facts and len(read) == 2
    assert json.loads(kept.read_text())[1]["config"]


def test_the_record_of_another_file_is_not_used(file: Path, read: list[Path]) -> None:
    in_another_process(file)
    (kept,) = (settings().cache_dir / "read").iterdir()
    other = write_toy(file.with_name("other.gguf"), Kind.Q8_0)
    note = in_another_process(other).note
    (of_other,) = {*kept.parent.iterdir()} - {kept}
    of_other.write_text(kept.read_text())
    assert in_another_process(other).note == note and len(read) == 3


def test_a_refused_file_leaves_no_record(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(ModelError):
        in_another_process(file)
    assert not (settings().cache_dir / "read").exists()


def test_a_cache_that_cannot_be_written_is_done_without(file: Path, read: list[Path]) -> None:
    settings().cache_dir.mkdir(parents=True)
    (settings().cache_dir / "read").touch()  # no folder
    assert in_another_process(file) == in_another_process(file) and len(read) == 2
