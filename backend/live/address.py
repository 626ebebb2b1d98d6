"""A state of a live model as a short text, of letters, digits and . _ ~. Does not import torch.

    3fa9c2d1e0b4~sparsegpt~gptq~50p_2of4andint4-g64~0x30_1x180_0
    model        pruner    quantizer  formats     layers in order: number of a format, times

The model may be left out: then it is the one there is. Formats are spelled as everywhere, but for
% (p), : (of) and + (and). The Workbench writes addresses (`assets/scripts/workbench/formats.js`);
here they are read."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NoReturn

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from backend.errors import ConfigError
from backend.models.families.stored import LinearShape
from backend.pruning.pruners import DECLARED_PRUNERS
from backend.quantization import DECLARED_QUANTIZERS
from backend.sensitivity.profile import Format

LONGEST = 20_000  # letters
AT_ONCE = {"pruner": "magnitude", "quantizer": "rtn"}  # what is made at once, a run makes so, too
SPELLING = {"%": "p", ":": "of", "+": "and"}
RUN = re.compile(r"(\d{1,4})(?:x(\d{1,6}))?", re.ASCII)
WORKBENCH = "workbench"  # in the environment of a run that was queued from a state
MOST_TOKENS = 1_000_000
PLAIN = r"^[A-Za-z0-9._~-]*$"

Address = Annotated[str, StringConstraints(max_length=LONGEST, pattern=PLAIN)]
Ratio = Annotated[float, Field(gt=0, lt=1e9, allow_inf_nan=False)]


@dataclass(frozen=True)
class LiveState:
    """The formats of all layers, in order, and the methods that a run would make them with."""

    formats: Mapping[str, Format]
    pruner: str
    quantizer: str


class QueuedState(BaseModel):
    """The state of a model that a run was queued from, and what was known of it then: perplexity
    over that of the dense model, predicted, and measured live on so many tokens."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str = Field(min_length=1, max_length=300)
    state: Address
    predicted: Ratio | None = None
    live: Ratio | None = None
    tokens: int = Field(0, ge=0, le=MOST_TOKENS)


def queued_state(environment: Mapping[str, Any]) -> QueuedState | None:
    """What the environment of a run keeps of it; None where it was not queued from a state."""
    try:
        return QueuedState.model_validate(environment.get(WORKBENCH))
    except ValidationError:
        return None


def state_at(address: str, layers: Sequence[LinearShape], identity: str | None = None) -> LiveState:
    """The state at an address. `layers`, `identity`: of the model it should belong to, of any
    version by default. Raises ConfigError: it is no address, belongs to another model, names
    methods or formats that are not there, or a layer cannot be stored so."""
    parts = address.split("~") if re.fullmatch(PLAIN, address[: LONGEST + 1]) else []
    if len(parts) != 5 or len(address) > LONGEST:
        _refuse("It is no address of a state.")
    if identity is not None and parts[0] not in ("", identity):
        _refuse("It belongs to another model, or another version of this one.")
    if parts[1] not in DECLARED_PRUNERS or parts[2] not in DECLARED_QUANTIZERS:
        _refuse(f"There is no method {parts[1][:40]!r} or {parts[2][:40]!r}.")
    spelled = parts[3]
    for sign, letters in SPELLING.items():
        spelled = spelled.replace(letters, sign)
    try:
        known = [Format.parse(text) for text in spelled.split("_")]
    except ValueError as error:
        _refuse(str(error))
    chosen, strange = list[Format](), "Its layers are not those of this model."
    for run in parts[4].split("_"):
        found = RUN.fullmatch(run)
        if not found or int(found[1]) >= len(known) or len(chosen) > len(layers):
            _refuse(strange)
        chosen += [known[int(found[1])]] * int(found[2] or 1)
    if len(chosen) != len(layers):
        _refuse(strange)
    for layer, form in zip(layers, chosen, strict=True):
        form.require_fit(layer.name, layer.columns, layer.block < 0)
    names = (layer.name for layer in layers)
    return LiveState(dict(zip(names, chosen, strict=True)), parts[1], parts[2])


def _refuse(why: str) -> NoReturn:
    raise ConfigError(
        "The state cannot be opened.", why, "Begin with the dense model.", field="address"
    )
