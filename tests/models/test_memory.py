import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.errors import ModelError
from backend.models.memory import (
    RUNTIME_BYTES,
    check_memory,
    is_out_of_memory,
    memory_needed,
    spills_to_disk,
)
from backend.models.sources.catalog import inspect

SMOL = inspect("smollm2-135m")
SIZES = {"segments": 32, "context": 512, "batch": 8, "copies": 1, "streams": 1}


def test_numbers_by_hand():
    assert memory_needed(SMOL) == RUNTIME_BYTES + 4 * 134_515_008
    assert memory_needed(SMOL, dtype="bfloat16") == RUNTIME_BYTES + 2 * 134_515_008
    states, inputs = 2 * 32 * 512 * 576 * 4, 3 * 576**2 + 1536**2  # q = k = v, o, gate = up, down
    for parallel in (1, 2):
        calibrated = memory_needed(SMOL, segments=32, context=512, parallel=parallel)
        grams = 4 * (parallel * inputs + 1536**2)  # and a temporary copy of the largest
        assert calibrated - memory_needed(SMOL) == states + grams


@given(st.sampled_from(sorted(SIZES)), st.integers(1, 50))
def test_more_of_anything_never_takes_less(name, more):
    bigger = SIZES | {name: SIZES[name] + more}
    more_of_it, less_of_it = memory_needed(SMOL, **bigger), memory_needed(SMOL, **SIZES)
    assert more_of_it >= less_of_it
    assert more_of_it > less_of_it or name in ("batch", "segments", "streams")  # logits need more


@pytest.mark.parametrize(
    ("choice", "needed", "waits"),
    [("disk", 1, True), ("memory", 99, False), ("auto", 25, False), ("auto", 26, True)],
)
def test_where_hidden_states_wait(choice, needed, waits):
    assert spills_to_disk(choice, needed, 100) is waits


@pytest.mark.parametrize(
    ("largest", "said", "field"),
    [
        ("weights", "stream its weights", "model"),
        ("activations", "Lower the segments", "segments"),
        ("logits", "context length", "context"),
    ],
)
def test_refusal_names_what_to_lower(largest, said, field):
    parts = {"runtime": 10**9, "weights": 5, "activations": 5, "logits": 5, "grams": 0}
    check_memory(10, 10, "It")
    with pytest.raises(ModelError, match=r"about 10 GB; 8 GB.*9 GB, is for") as caught:
        check_memory(parts | {largest: 9 * 10**9}, 8 * 10**9, "It")
    assert said in caught.value.do and caught.value.field == field


def test_refusal_names_both_numbers():
    with pytest.raises(ModelError, match=r"12 GB; 8\.5 GB"):
        check_memory(12 * 10**9, 8_500_000_000, "It")


@pytest.mark.parametrize(
    ("error", "short"),
    [
        (MemoryError(), True),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("shapes cannot be multiplied"), False),
    ],
)
def test_a_lack_of_memory_is_recognized_by_its_words(error, short):
    assert is_out_of_memory(error) is short
