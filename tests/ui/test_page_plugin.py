"""A page that lives in one plugin file: found, drawn with the others, and answering."""

from collections.abc import Iterator

import pytest

from backend.settings import Settings, settings
from jobs.kind import kinds
from tests.plugins import page as plugin
from tests.ui.lab import job, store
from ui import app
from ui.pages import pages


@pytest.fixture
def plugged(data_dir: object, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("SLIMSCOPE_PLUGINS", '["tests.plugins.page"]')
    caches = (settings.cache_clear, kinds.cache_clear, pages.cache_clear)
    for clear in caches:
        clear()
    yield
    for clear in caches:
        clear()


def test_a_plugins_page_stands_in_its_place_and_answers(plugged: None, tables: Settings) -> None:
    names = [page.name for page in pages()]
    assert names.index("Runs") < names.index("Toy page") < names.index("Playground")
    config = app.build((pages()[0], *plugin.PAGES)).get_config_file()
    assert [*config["pages"][1]][:2] == ["toy-page", "Toy page"]
    ids = {
        c["props"].get("elem_id")
        for c in config["components"]
        if c["id"] in config["page"]["toy-page"]["components"]
    }
    assert {"toy-states", "frame-header"} <= ids
    store(job(1), job(2), job(3, state="failed"))
    updates = plugin.draw()
    assert sorted(updates["states_chart"].data[0].y) == [1, 2]
    assert 'data-value="2"' in updates["states_table"]
