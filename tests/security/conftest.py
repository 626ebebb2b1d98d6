"""An untrusted model folder, and the error that rejects it."""

import json
import shutil
from pathlib import Path

import pytest

from backend.errors import ModelError
from backend.models.sources.catalog import inspect
from backend.models.sources.spec import TOY_FOLDER
from backend.settings import Settings


@pytest.fixture
def folder(current: Settings) -> Path:
    """A copy of the toy model that a test may damage."""
    target = current.root / "models" / "mine"
    shutil.copytree(TOY_FOLDER, target)
    return target


def configure(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))


def refusal(spec: str | Path) -> ModelError:
    with pytest.raises(ModelError) as caught:
        inspect(str(spec))
    error = caught.value
    assert error.field == "model" and error.what and error.why and error.do
    return error
