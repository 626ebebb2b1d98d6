"""The toy model, and a reporter that asks to stop."""

import pytest

from backend.models.loading import LoadedModel, load
from backend.reporter import SilentReporter


class Impatient(SilentReporter):
    """Asks to stop once it was asked `patience` times."""

    def __init__(self, patience: int = 0) -> None:
        self.patience = patience

    def should_stop(self) -> bool:
        self.patience -= 1
        return self.patience < 0


@pytest.fixture(scope="module")
def toy() -> LoadedModel:
    return load("toy")
