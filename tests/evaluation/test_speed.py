"""What the speed room computes of the times it takes; no test here asserts a time."""

from collections.abc import Iterator, Sequence

import pytest

from backend.evaluation import acceleration as room
from backend.evaluation.acceleration import decode_seconds
from backend.reporter import SilentReporter


def test_decoding_is_timed_without_its_prompt_and_its_warm_up() -> None:
    made: list[int] = []

    def counting(_prompt: Sequence[int]) -> Iterator[int]:
        made.append(0)
        while True:
            made[-1] += 1
            yield 0

    seen: list[int] = []

    def clock() -> float:
        seen.append(made[-1])
        return float(len(seen))

    found = decode_seconds([counting, counting], [1, 2], 5, 3, SilentReporter(), clock)
    assert found == [[1.0] * 3] * 2
    assert made == [6] * 8  # three repeats and a warm-up each: the prompt's token, then five
    assert seen == [1, 6] * 8  # the clock starts behind the prompt


def test_decoders_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    monkeypatch.setattr(room, "_decoded", lambda decoder, *_: order.append(decoder) or len(order))
    found = decode_seconds(["a", "b"], [1], 5, 2, SilentReporter())  # type: ignore[list-item]
    assert order == ["a", "b"] * 3 and found == [[3, 5], [4, 6]]
