"""Settings of the tests: frequent checkpoints, and snapshots only at both ends."""

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="module")
def often_saved() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("backend.quantization.dlqat.trainer.SAVE_EVERY", 2)
        patch.setattr("backend.quantization.dlqat.statistics.SNAPSHOTS", 2)
        yield
