"""Addresses of states, as written by the Workbench and by others."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.errors import ConfigError
from backend.live.address import (
    MAX_ADDRESS_LENGTH,
    WORKBENCH,
    LiveState,
    queued_state,
    state_at,
)
from backend.live.dense import DenseModel
from backend.live.model import LiveModel
from backend.models.families.stored import LinearShape
from backend.models.sources.catalog import inspect
from backend.sensitivity.profile import Format

NAMES = [f"model.layers.{n}.mlp.down_proj" for n in range(12)]
LAYERS = [LinearShape(name, n, "mlp.down_proj", 8, 128) for n, name in enumerate(NAMES)]
PATTERNS = ["", "2:4", "4:8", "50%", "33.3333%", "0.0000000001%", "99.9%", "1:2"]
WIDTHS = ["", *(f"int{bits}{group}" for bits in range(2, 9) for group in ("", "-g32", "-g128"))]
FORMATS = st.builds(
    lambda *parts: Format.parse("+".join(filter(None, parts)) or "dense"),
    st.sampled_from(PATTERNS),
    st.sampled_from(WIDTHS),
)
TIMES = st.lists(st.integers(1, 12), max_size=12).filter(lambda each: sum(each) <= 12)


@st.composite
def written(draw: st.DrawFn) -> tuple[str, LiveState]:
    """Address with as many repeated formats as there are formats, and its state."""
    times = draw(TIMES)
    times += [1] * (len(LAYERS) - sum(times))
    forms = [draw(FORMATS) for _ in times]
    pruner = draw(st.sampled_from(["magnitude", "wanda", "sparsegpt", "alps"]))
    quantizer = draw(st.sampled_from(["rtn", "gptq", "hqq"]))
    spelled = "_".join(map(str, forms))
    for sign, letters in ("%", "p"), (":", "of"), ("+", "and"):
        spelled = spelled.replace(sign, letters)
    runs = "_".join(f"{at}x{many}" if many > 1 else str(at) for at, many in enumerate(times))
    each = [form for form, many in zip(forms, times, strict=True) for _ in range(many)]
    state = LiveState(dict(zip(NAMES, each, strict=True)), pruner, quantizer)
    return f"abc~{pruner}~{quantizer}~{spelled}~{runs}", state


@given(written())
def test_an_address_is_parsed(given: tuple[str, LiveState]) -> None:
    address, state = given
    assert re.fullmatch(r"[\w.~-]+", address, re.ASCII)
    assert state_at(address, LAYERS, "abc") == state == state_at(address, LAYERS)


@given(written(), st.data())
def test_a_modified_address_is_another_state_or_refused(
    given: tuple[str, LiveState], data: st.DataObject
) -> None:
    address, _ = given
    position = data.draw(st.integers(0, len(address)))
    changed = address[:position] + data.draw(st.text(max_size=4)) + address[position + 1 :]
    try:
        actual = state_at(changed, LAYERS, "abc")
    except ConfigError as error:
        assert error.field in ("address", "formats")
    else:
        assert [*actual.formats] == NAMES


@given(st.text() | st.from_regex(r"[0-9a-z~_.x]{0,60}"))
def test_any_text_is_refused_with_an_error(text: str) -> None:
    with pytest.raises(ConfigError):
        state_at(text, LAYERS, "abc")


@pytest.mark.parametrize(
    ("address", "cause"),
    [
        ("", "not an address"),
        ("~" * MAX_ADDRESS_LENGTH * 2, "not an address"),
        ("abd~alps~gptq~50p~0x12", "another model"),
        ("abc~magic~gptq~50p~0x12", "method 'magic' or 'gptq' does not exist"),
        ("abc~alps~gptq~int0~0x12", "0 bits are not offered"),
        ("abc~alps~gptq~100p~0x12", "not between 0 and 100"),
        ("abc~alps~gptq~50p~1x12", "layers"),
        ("abc~alps~gptq~50p~0x13", "layers"),
        ("abc~alps~gptq~50p~0x11", "layers"),
        ("abc~alps~gptq~50p~0x0_0x12_x", "layers"),
        ("abc~alps~gptq~50p~٠x12", "not an address"),
    ],
)
def test_the_error_names_the_reason(address: str, cause: str) -> None:
    with pytest.raises(ConfigError, match=cause):
        state_at(address, LAYERS, "abc")


@pytest.mark.parametrize(
    ("forms", "cause"),
    [("50p_int8-g32", ""), ("2of3_dense", "divide its 64"), ("dense_50p", "not pruned")],
)
def test_formats_that_do_not_fit_a_layer_are_refused(forms: str, cause: str) -> None:
    layers = [LinearShape("q", 0, "q", 8, 64), LinearShape("head", -1, "head", 8, 64)]
    address = f"abc~wanda~rtn~{forms}~0_1"
    if not cause:
        first, last = state_at(address, layers).formats.values()
        assert (str(first), str(last)) == ("50%", "int8-g32")
        return
    with pytest.raises(ConfigError, match=cause):
        state_at(address, layers)


def test_a_state_can_be_reopened(dense: DenseModel) -> None:
    n = len(dense.in_blocks)
    address = f"{dense.identity}~sparsegpt~gptq~2of4andint4-g32_dense_int8-g32~0x3_1_0x{n - 4}_2"
    facts, live = inspect("toy"), LiveModel(dense)
    assert [*dense.layers] == [x.name for x in (*facts.linears, *facts.embeddings)]
    actual = state_at(address, (*facts.linears, *facts.embeddings), dense.identity)
    live.apply(actual.formats, actual.pruner, actual.quantizer)
    assert actual == LiveState(live.formats, "sparsegpt", "gptq")
    assert live.formats[dense.in_blocks[3]] == Format()


RECORD = {"model": "toy", "state": "~wanda~rtn~50p~0x12", "predicted": 1.2, "live": 2, "tokens": 9}


@pytest.mark.parametrize(
    "strange",
    [
        {"state": "<img src=x>"},
        {"state": "a" * (MAX_ADDRESS_LENGTH + 1)},
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
def test_the_state_in_the_environment_of_a_run_is_validated(strange: dict[str, object]) -> None:
    kept = queued_state({WORKBENCH: RECORD})
    assert kept is not None and kept.model_dump(exclude_unset=True) == RECORD
    assert queued_state({WORKBENCH: RECORD | strange}) is None
    assert queued_state({}) is None and queued_state({WORKBENCH: "x"}) is None
