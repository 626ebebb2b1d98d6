"""What people and models have written is shown as text on every page."""

from collections.abc import Callable
from typing import Any

import pytest

from backend.settings import Settings
from backend.store.session import writing
from backend.store.tables import Job
from jobs import sweep
from jobs.evaluation.kind import MODEL
from tests.queue.conftest import HOST
from tests.ui.conftest import HOSTILE
from tests.ui.lab import asked, job, result, store
from ui.pages.compare import page as compare
from ui.pages.home import page as home
from ui.pages.queue import page as queue
from ui.pages.run import page as run
from ui.pages.runs import page as runs
from ui.pages.sweep import page as sweep_page

VIEWS: dict[str, Callable[[], dict[str, Any]]] = {
    "home": lambda: home.draw(asked()),
    "queue, ended": lambda: queue.draw(asked(state="ended")),
    "queue, failed": lambda: queue.draw(asked(state="failed", id="sds-0004")),
    "runs": lambda: runs.draw(asked()),
    "a run": lambda: run.draw(asked(id="sds-0001")),
    "a run that failed": lambda: run.draw(asked(id="sds-0004")),
    "texts of a model": lambda: run.draw_measures(asked(id="evaluation-0006")),
    "comparison": lambda: compare.draw(asked(ids="sds-0001,sds-0002")),
    "sweep": lambda: sweep_page.draw(None, asked(id="sds-0007")),
}


@pytest.mark.parametrize("view", VIEWS)
def test_texts_are_never_markup(seeded: Settings, view: str) -> None:
    """A name, a note, an error and an answer."""
    written = [{"prompt": HOSTILE, "text": HOSTILE, "tokens": [1]}]
    store(
        job(6, kind="evaluation", config={"model": "toy"}, kept_stage=MODEL),
        result(6, MODEL, "greedy_agreement", 0.5, samples=written),
    )
    sweep.queue("sds", {"model": "toy"}, {"seed": ["0", "1"]}, HOST, name=HOSTILE)
    with writing() as session:
        session.get_one(Job, 1).note = HOSTILE
    parts = [p.get("value") if isinstance(p, dict) else p for p in VIEWS[view]().values()]
    shown = "".join(part for part in parts if isinstance(part, str))
    assert "onerror=" in shown
    assert "<img" not in shown and "${" not in shown and "{{" not in shown
