"""How long a token takes with the layers in each format, measured on one machine. Does not import
torch.

    t(mix) = sum_l  n_l / N  t(f_l)  +  h(f_head)         n_l of N weights of the blocks in layer l

Time goes where weights are read, so that a format counts by its share of them. What the decoder
reads as one matrix, it reads in the widest of its formats: query, key and value."""

import re
from typing import Annotated

from pydantic import BaseModel, Field, ValidationError

QKV = re.compile(r"\.[qkv]_proj$")  # one matrix in the decoder

Milliseconds = Annotated[float, Field(gt=-1e9, lt=1e9)]


class DecodingTimes(BaseModel, frozen=True, extra="forbid"):
    """Milliseconds a token.

    Attributes:
        layers: format -> with all layers of the blocks in it, and the head in 16 bits.
        head: format -> what a head in it takes more than one in 16 bits; mostly below 0.
        threads: of the decoder.
    """

    layers: dict[str, Annotated[Milliseconds, Field(gt=0)]] = Field(max_length=100)
    head: dict[str, Milliseconds] = Field(max_length=100)
    threads: int = Field(ge=1, lt=1e6)

    @classmethod
    def read(cls, stored: object) -> "DecodingTimes | None":
        """What a run has stored; None where that is nothing, or damaged."""
        try:
            return cls.model_validate(stored)
        except ValidationError:
            return None
