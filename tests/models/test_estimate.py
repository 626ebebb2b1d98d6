from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.errors import ModelRefused
from backend.models.catalogue import inspect
from backend.models.estimate import (
    RUNTIME,
    gram_memory,
    memory_available,
    memory_needed,
    readable,
    refuse_beyond,
)

SMOL = inspect("smollm2-135m")
SIZES = {"segments": 32, "context": 512, "batch": 8, "copies": 1, "streams": 1}


def test_numbers_by_hand():
    assert memory_needed(SMOL) == RUNTIME + 4 * 134_515_008
    assert gram_memory(SMOL) == 4 * (6 * 576**2 + 1536**2)
    calibrated = memory_needed(SMOL, segments=32, context=512)
    assert calibrated - memory_needed(SMOL) == 2 * 32 * 512 * 576 * 4 + gram_memory(SMOL)


@given(st.sampled_from(sorted(SIZES)), st.integers(1, 50))
def test_more_of_anything_never_takes_less(name, more):
    bigger = SIZES | {name: SIZES[name] + more}
    assert memory_needed(SMOL, **bigger) > memory_needed(SMOL, **SIZES)


def test_half_the_precision_takes_half_the_weights():
    half = memory_needed(SMOL, dtype="bfloat16") - RUNTIME
    assert 2 * half == memory_needed(SMOL) - RUNTIME


def test_refusal_names_both_numbers():
    refuse_beyond(10, 10, "It")
    with pytest.raises(ModelRefused, match=r"12 GB; 8\.5 GB"):
        refuse_beyond(12 * 10**9, 8_500_000_000, "It")


def test_this_machine_has_some_memory():
    assert 0 < memory_available() < 10**14


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (538_090_408, "538 MB"), (2e12, "2 TB")]
)
def test_bytes_are_written_for_people(count, text):
    assert readable(count) == text
