"""Request models of live models in the serving process. Does not import torch."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from backend.errors import ConfigError
from backend.live.address import Address
from backend.models.facts import ModelFacts
from backend.models.memory import DeviceMemory, weight_memory

PREFIX = "/live"  # path prefix of the routes
MAX_TABLE_BYTES = 2**30  # for tables of ranks and scales
MAX_TOKENS, MAX_CHARACTERS = 256, 20_000
SILENT_S = 180.0  # a request without an event for so long ends
PULSE_S = 10.0  # interval of wait notices while no other event comes

Browser = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9-]{1,40}$")]
ModelName = Annotated[str, Field(min_length=1, max_length=300)]
Result = Literal["loss", "text", "speed", "refine", "why"]


class StateBody(BaseModel):
    """State of a model. `browser`: id of the browser, which keeps its refined layers between
    requests."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: ModelName
    state: Address
    browser: Browser


class TensorBody(StateBody):
    """One layer of a state."""

    name: str = Field(max_length=300)


class LiveBody(StateBody):
    """State and requested results. A newer request of the same `browser` cancels an older one.

    Attributes:
        want: requested results.
        prompt: beginning of the text to generate.
        tokens: number of tokens to generate.
        text: text whose loss is traced to blocks.
        against: saved model of the same shapes, such as a run. Its blocks are traced, replaced one
            at a time by those of `model`; the state is ignored.
    """

    want: list[Result] = Field(default_factory=list, max_length=10)
    prompt: str = Field("", max_length=MAX_CHARACTERS)
    tokens: int = Field(48, ge=1, le=MAX_TOKENS)
    text: str = Field("", max_length=MAX_CHARACTERS)
    against: str = Field("", max_length=300)

    @property
    def character_count(self) -> int:
        """Number of characters of prompt and text."""
        return len(self.prompt) + len(self.text)


class ExportBody(StateBody):
    """State to save as a model named `name` in the data folder."""

    format: Literal["compressed-tensors", "slimscope", "dense", "gguf"] = "compressed-tensors"
    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$")]


def live_memory(facts: ModelFacts) -> dict[str, int]:
    """Return upper bounds of the memory of a live model in bytes, by purpose: stored weights, dense
    and live weights in the decoder's layout, and tables of ranks and scales."""
    return {
        "weights": weight_memory(facts, facts.saved_dtype),
        "layouts": 3 * weight_memory(facts, "bfloat16"),
        "tables": min(MAX_TABLE_BYTES, 8 * facts.linear_weights),
    }


def require_live(facts: ModelFacts, device: DeviceMemory) -> None:
    """Raise an error if a model cannot be used as a live model.

    Raises:
        ModelError: it is packed, cannot be compressed, or does not fit into memory.
        ConfigError: its weights are quantized.
    """
    facts.require_compressible()
    if facts.quantized:
        raise ConfigError(
            f"{facts.title} cannot be changed live.",
            "Its weights are already quantized.",
            "Choose the dense model.",
            "model",
        )
    device.require(live_memory(facts), facts.title)
