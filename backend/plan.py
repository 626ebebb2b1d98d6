"""The plan of a run: what it does to each layer of its model. Does not import torch."""

from abc import ABC, abstractmethod
from typing import Any

from pydantic import BaseModel, ConfigDict


class Plan(BaseModel, ABC):
    """What a run does to each layer of its model.

    Made and checked when the run is submitted, stored with it as JSON, and executed by its job
    without further checks.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    @property
    def parts(self) -> dict[str, tuple[str, ...]]:
        """What is done, in words -> full names of the layers it is done to."""
        return {}

    @abstractmethod
    def check(self, config: Any) -> None:
        """Raise `ValueError` or `ConfigError` unless `config` gives this plan for its layers."""
