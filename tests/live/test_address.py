"""States as texts: there and back, and what others write there."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.errors import ConfigError
from backend.live.address import LONGEST, WORKBENCH, LiveState, address_of, queued_state, state_at
from backend.live.dense import DenseModel
from backend.live.model import LiveModel
from backend.sensitivity.profile import Format

LAYERS = [f"model.layers.{n}.mlp.down_proj" for n in range(12)]
PATTERNS = ["", "2:4", "4:8", "50%", "33.3333%", "0.0000000001%", "99.9%", "1:2"]
WIDTHS = ["", *(f"int{bits}{group}" for bits in range(2, 9) for group in ("", "-g32", "-g128"))]
FORMATS = st.builds(
    lambda *parts: Format.parse("+".join(filter(None, parts)) or "dense"),
    st.sampled_from(PATTERNS),
    st.sampled_from(WIDTHS),
)
LISTS = st.lists(FORMATS, min_size=len(LAYERS), max_size=len(LAYERS))
STATES = st.builds(
    LiveState,
    LISTS.map(lambda each: dict(zip(LAYERS, each, strict=True))),
    st.sampled_from(["magnitude", "wanda", "sparsegpt", "alps"]),
    st.sampled_from(["rtn", "gptq", "hqq"]),
)


@given(STATES)
def test_there_and_back(state: LiveState) -> None:
    address = address_of(state, "abc")
    assert re.fullmatch(r"[\w.~-]+", address, re.ASCII) and len(address) < 1000
    assert state_at(address, "abc", LAYERS) == state


@given(STATES, st.data())
def test_what_was_changed_is_another_or_refused(state: LiveState, data: st.DataObject) -> None:
    address = address_of(state, "abc")
    place = data.draw(st.integers(0, len(address)))
    changed = address[:place] + data.draw(st.text(max_size=4)) + address[place + 1 :]
    try:
        found = state_at(changed, "abc", LAYERS)
    except ConfigError as error:
        assert error.field == "address"
    else:
        assert [*found.formats] == LAYERS


@given(st.text() | st.from_regex(r"[0-9a-z~_.x]{0,60}"))
def test_any_text_is_refused_in_words(text: str) -> None:
    with pytest.raises(ConfigError):
        state_at(text, "abc", LAYERS)


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("", "no address"),
        ("~" * LONGEST * 2, "no address"),
        ("abd~alps~gptq~50p~0x12", "another model"),
        ("abc~magic~gptq~50p~0x12", "no method 'magic'"),
        ("abc~alps~gptq~int0~0x12", "0 bits are not offered"),
        ("abc~alps~gptq~100p~0x12", "not between 0 and 100"),
        ("abc~alps~gptq~50p~1x12", "layers"),
        ("abc~alps~gptq~50p~0x13", "layers"),
        ("abc~alps~gptq~50p~0x11", "layers"),
        ("abc~alps~gptq~50p~0x0_0x12_x", "layers"),
        ("abc~alps~gptq~50p~٠x12", "no address"),
    ],
)
def test_the_reason_is_told(address: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        state_at(address, "abc", LAYERS)


def test_a_state_is_opened_again(dense: DenseModel) -> None:
    live = LiveModel(dense)
    live.apply(dict.fromkeys(dense.in_blocks, "2:4+int4-g32"), "sparsegpt", "gptq")
    live.apply({dense.in_blocks[3]: "dense", dense.outside[0]: "int8-g32"})
    found = state_at(live.address, dense.identity, [*dense.layers])
    assert live.checked(found.formats, found.pruner, found.quantizer) == found
    assert found == LiveState(live.formats, "sparsegpt", "gptq")


RECORD = {"model": "toy", "state": "~wanda~rtn~50p~0x12", "predicted": 1.2, "live": 2, "tokens": 9}


@pytest.mark.parametrize(
    "strange",
    [
        {"state": "<img src=x>"},
        {"state": "a" * (LONGEST + 1)},
        {"state": None},
        {"model": ""},
        {"model": "x" * 301},
        {"predicted": 0},
        {"predicted": -1.0},
        {"predicted": "1"},
        {"live": float("nan")},
        {"live": float("inf")},
        {"live": 1e300},
        {"live": True},
        {"tokens": -1},
        {"tokens": 2**70},
        {"tokens": 1.5},
        {"more": 1},
    ],
)
def test_what_a_run_keeps_of_its_state_is_bounded(strange: dict[str, object]) -> None:
    kept = queued_state({WORKBENCH: RECORD})
    assert kept is not None and kept.model_dump() == RECORD
    assert queued_state({WORKBENCH: RECORD | strange}) is None
    assert queued_state({}) is None and queued_state({WORKBENCH: "x"}) is None
