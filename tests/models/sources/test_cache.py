import json
import threading
import time
from pathlib import Path

import pytest

from backend.errors import ModelError
from backend.models.sources.cache import CacheOrigin, prepare_once, prepared
from backend.settings import settings


@pytest.fixture(autouse=True)
def root(data_dir, tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SLIMSCOPE_CACHE_DIR", str(tmp_path / "cache"))
    settings.cache_clear()
    return tmp_path / "cache" / "models"


def fill(draft: Path) -> None:
    (draft / "weights").write_text("w")


def test_a_folder_is_whole_or_absent(root):
    def fail(draft: Path) -> None:
        fill(draft)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        prepare_once("one", 0, fail)
    assert prepared("one") is None
    assert not [path for path in root.iterdir() if path.is_dir()]
    assert prepare_once("one", 0, fill) == root / "one" == prepared("one")


def test_what_a_killed_process_left_is_cleared_away(root):
    left_over = root / ".tmp-99999999-one"  # no process has such a number
    left_over.mkdir(parents=True)
    fill(left_over)
    prepare_once("one", 0, fill)
    assert not left_over.exists()


def test_two_that_ask_at_once_do_the_work_once():
    calls: list[Path] = []

    def slowly(draft: Path) -> None:
        calls.append(draft)
        time.sleep(0.2)
        fill(draft)

    threads = [threading.Thread(target=prepare_once, args=("one", 0, slowly)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert prepared("one") is not None


def test_a_full_disk_is_noticed_before_the_work():
    with pytest.raises(ModelError, match=r"needs 1e\+06 TB; .* are free"):
        prepare_once("one", 10**18, fill)
    assert prepared("one") is None


def test_a_source_is_written_and_read(tmp_path):
    source = CacheOrigin("Title", "a note", "where", "Apache-2.0")
    assert CacheOrigin.read(tmp_path) is None
    source.write(tmp_path)
    assert CacheOrigin.read(tmp_path) == source
    (tmp_path / "SOURCE.json").write_text('{"other": 1}')
    assert CacheOrigin.read(tmp_path) is None


def test_an_origin_of_an_older_cache_is_read(root):
    root.mkdir(parents=True)
    entries = {"title": "A", "note": "dequantised from Q4_1", "origin": "b", "licence": "MIT"}
    (root / "SOURCE.json").write_text(json.dumps(entries))
    assert CacheOrigin.read(root) == CacheOrigin("A", "dequantized from Q4_1", "b", "MIT")
    (root / "SOURCE.json").write_text(json.dumps({"licence": "MIT"}))
    assert CacheOrigin.read(root) is None
