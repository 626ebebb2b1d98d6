"""Reading a log while it grows."""

from __future__ import annotations

from pathlib import Path

from backend.queue.folders import TAIL_BYTES, log_file, read_log


def test_a_log_is_read_in_parts_and_no_character_is_cut(data_dir: Path) -> None:
    assert read_log("sds-0001", 1) == ("", 0, 0)
    path = log_file("sds-0001", 1)
    path.parent.mkdir(parents=True)
    whole = "perplexité ± 漢字\n".encode()
    path.write_bytes(whole[:-3])  # in the middle of the last sign
    first, _, cursor = read_log("sds-0001", 1, 0)
    path.write_bytes(whole)
    second, began, cursor = read_log("sds-0001", 1, cursor)
    assert first + second == whole.decode() and cursor == len(whole)
    assert began == len(first.encode())
    assert read_log("sds-0001", 1, cursor) == ("", cursor, cursor)


def test_a_long_log_begins_with_its_last_part(data_dir: Path) -> None:
    path = log_file("sds-0001", 1)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x" * TAIL_BYTES + b"\xffend")
    text, began, cursor = read_log("sds-0001", 1)
    assert (
        text.endswith("\ufffdend")
        and len(text) == TAIL_BYTES
        and (began, cursor) == (4, TAIL_BYTES + 4)
    )
