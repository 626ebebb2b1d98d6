"""The plan of a run: what it does to each layer of its model. Does not import torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from pydantic import BaseModel, ConfigDict


class Plan(BaseModel, ABC):
    """What a run does to each layer of its model.

    Made and checked when the run is submitted, stored with it as JSON, and executed by its job
    without further checks.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    @abstractmethod
    def check(self, config: Any) -> None:
        """Raise `ValueError` unless `config` gives this plan for the layers named in it."""
