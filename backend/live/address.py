"""Address of a state of a live model: a short text of letters, digits and . _ ~ -. Does not import
torch.

    3fa9c2d1e0b4~sparsegpt~gptq~50p_2of4andint4-g64~0x30_1x180_0
    model        pruner    quantizer  formats     layers in order: index of a format, repetitions

Without a model, the address belongs to any model. Formats have their usual spelling, except for %
(p), : (of) and + (and). The Workbench writes the address of what its knobs say
(`assets/scripts/workbench/formats.js`); this module parses addresses, and writes those of runs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Annotated, Any, NoReturn

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from backend.errors import ConfigError
from backend.models.families.stored import LinearShape
from backend.pruning.pruners import DECLARED_PRUNERS
from backend.quantization import DECLARED_QUANTIZERS
from backend.sensitivity.profile import Format

MAX_ADDRESS_LENGTH = 20_000  # characters
# Methods whose instant result is equal to that of a run.
INSTANT_METHODS = {"pruner": "magnitude", "quantizer": "rtn"}
SPELLING = {"%": "p", ":": "of", "+": "and"}  # character of a format -> spelling in an address
REPEATED_FORMAT = re.compile(r"(\d{1,4})(?:x(\d{1,6}))?", re.ASCII)
WORKBENCH = "workbench"  # key in the environment of a run that was queued from a state
MAX_MEASURED_TOKENS = 1_000_000
ADDRESS_PATTERN = r"^[A-Za-z0-9._~-]*$"

Address = Annotated[str, StringConstraints(max_length=MAX_ADDRESS_LENGTH, pattern=ADDRESS_PATTERN)]
Ratio = Annotated[float, Field(gt=0, lt=1e9, allow_inf_nan=False)]


@dataclass(frozen=True)
class LiveState:
    """State of a live model.

    Attributes:
        formats: full layer name -> format, for all layers in order.
        pruner: pruner that a run would use.
        quantizer: quantizer that a run would use.
    """

    formats: Mapping[str, Format]
    pruner: str
    quantizer: str


class QueuedState(BaseModel):
    """State that a run was queued from.

    Attributes:
        model: name of the model.
        state: address of the state.
        predicted: predicted perplexity relative to that of the dense model.
        live: measured perplexity relative to that of the dense model.
        low: lower end of its 95 % interval.
        high: upper end of its 95 % interval.
        tokens: number of tokens of that measurement.
        context: number of tokens of each of its windows.
        preview: the layers were made by instant methods instead of those of the state.
        profile: run whose profile predicted.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str = Field(min_length=1, max_length=300)
    state: Address
    predicted: Ratio | None = None
    live: Ratio | None = None
    low: Ratio | None = None
    high: Ratio | None = None
    tokens: int = Field(0, ge=0, le=MAX_MEASURED_TOKENS)
    context: int = Field(0, ge=0, le=MAX_MEASURED_TOKENS)
    preview: bool = False
    profile: str = Field("", max_length=120)


def queued_state(environment: Mapping[str, Any]) -> QueuedState | None:
    """Read the state from the environment of a run; None if the run was not queued from a state."""
    try:
        return QueuedState.model_validate(environment.get(WORKBENCH))
    except ValidationError:
        return None


def state_at(address: str, layers: Sequence[LinearShape], identity: str | None = None) -> LiveState:
    """Parse an address.

    Args:
        address: text to parse.
        layers: layers of the model.
        identity: identity of the model; None accepts an address of any model.

    Raises:
        ConfigError: the text is not an address, belongs to another model, contains an unknown
            method or format, or a layer cannot be stored in its format.
    """
    is_plain = re.fullmatch(ADDRESS_PATTERN, address[: MAX_ADDRESS_LENGTH + 1])
    parts = address.split("~") if is_plain else []
    if len(parts) != 5 or len(address) > MAX_ADDRESS_LENGTH:
        _refuse("The text is not an address of a state.")
    model, pruner, quantizer, format_texts, layer_texts = parts
    if identity is not None and model not in ("", identity):
        _refuse("It belongs to another model, or to another version of this model.")
    if pruner not in DECLARED_PRUNERS or quantizer not in DECLARED_QUANTIZERS:
        _refuse(f"The method {pruner[:40]!r} or {quantizer[:40]!r} does not exist.")
    for character, spelling in SPELLING.items():
        format_texts = format_texts.replace(spelling, character)
    try:
        formats = [Format.parse(text) for text in format_texts.split("_")]
    except ValueError as error:
        _refuse(str(error))
    layer_formats, mismatch = list[Format](), "Its layers do not match those of this model."
    for text in layer_texts.split("_"):
        match = REPEATED_FORMAT.fullmatch(text)
        if not match or int(match[1]) >= len(formats) or len(layer_formats) > len(layers):
            _refuse(mismatch)
        layer_formats += [formats[int(match[1])]] * int(match[2] or 1)
    if len(layer_formats) != len(layers):
        _refuse(mismatch)
    for layer, fmt in zip(layers, layer_formats, strict=True):
        fmt.require_fit(layer.name, layer.columns, layer.block < 0)
    names = (layer.name for layer in layers)
    return LiveState(dict(zip(names, layer_formats, strict=True)), pruner, quantizer)


def address_of(formats: Sequence[Format], pruner: str, quantizer: str) -> str:
    """The address of a state of any version of a model, with the formats of all layers in order."""
    texts = [*map(str, formats)]
    used = [*dict.fromkeys(texts)]
    spelled = "_".join(used)
    for character, spelling in SPELLING.items():
        spelled = spelled.replace(character, spelling)
    repetitions = [(used.index(text), len([*group])) for text, group in groupby(texts)]
    layers = "_".join(f"{at}x{number}" if number > 1 else str(at) for at, number in repetitions)
    return "~".join(("", pruner, quantizer, spelled, layers))


def _refuse(cause: str) -> NoReturn:
    raise ConfigError(
        "The state cannot be opened.", cause, "Start with the dense model.", field="address"
    )
