"""Fixtures: the toy model in the dtype of its files as a live model, and a familiar text."""

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from backend.live.dense import DenseModel
from backend.models.loading import load
from backend.pruning.config import SDSConfig
from backend.quantization.config import DLQATConfig
from tests.toy_layers import _toy, calibration, toy, unseen

__all__ = ["_toy", "calibration", "toy", "unseen"]


@pytest.fixture(scope="session")
def _stored() -> PreTrainedModel:
    return load("toy", dtype=torch.float16).model


@pytest.fixture
def make(_stored: PreTrainedModel, calibration: Tensor) -> Callable[..., DenseModel]:
    """Factory for a dense model; `text` adds a calibration text."""

    def made(precision: str = "auto", text: bool = True, **quantization: object) -> DenseModel:
        dlqat = DLQATConfig.model_validate({"precision": precision, **quantization})
        sds = SDSConfig.model_validate({"precision": precision, "batch": 5})
        return DenseModel(deepcopy(_stored), calibration[:12] if text else None, sds, dlqat)

    return made


@pytest.fixture
def dense(make: Callable[..., DenseModel]) -> DenseModel:
    return make()
