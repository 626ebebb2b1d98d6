"""An upgrade while people look: what their pages say, and what becomes of an answer at work."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import BrowserContext, expect

from backend.store import queries
from tests.browser.conftest import PATIENCE_MS, Dashboard, opened, started, variables, wait_for
from tests.browser.test_playground import ENDLESS, ask
from tests.conftest import ALL
from tests.store.next_version import NUMBER, next_version


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch decodes, which leaves time to look."""
    monkeypatch.setenv("SLIMSCOPE_NATIVE", "false")


@contextmanager
def next_dashboard(dashboard: Dashboard, folder: Path) -> Iterator[None]:
    """The next version in place of a dashboard. In `make test-all` its code is a copy, which also
    changes the database, and its processes are fresh."""
    dashboard.process.kill()
    dashboard.process.join()
    port = urlsplit(dashboard.url).port or 0
    if not ALL:
        with started(dashboard.data, os.environ, port, NUMBER):
            yield
        return
    told = next_version(folder) | variables(dashboard.data, PORT=str(port), EXAMPLES="false")
    line, here = [sys.executable, "app.py"], told["PYTHONPATH"]
    with subprocess.Popen(line, env=os.environ | told | {"BROWSER": "true"}, cwd=here) as theirs:
        wait_for(dashboard.url, lambda: theirs.poll() is None)
        yield
        theirs.kill()


@pytest.mark.usefixtures("slow")
def test_open_pages_ask_to_be_loaded_anew_and_change_nothing(
    warm_context: BrowserContext, dashboard: Dashboard, tmp_path: Path
) -> None:
    page, form = warm_context.new_page(), warm_context.new_page()
    for each in (page, form):
        each.set_default_timeout(PATIENCE_MS)
    opened(form, f"{dashboard.url}/new-run?model=toy")
    page.goto(f"{dashboard.url}/playground")
    page.get_by_role("button", name="Settings").click()
    page.locator("#playground-field-max-new-tokens input").fill("300")
    page.locator("#playground-field-lookup input").check()  # drafts tokens
    ask(page, ENDLESS)
    page.wait_for_function("document.querySelector('.strip')?.textContent.length > 9")
    with next_dashboard(dashboard, tmp_path / "next"):
        form.bring_to_front()
        status = form.locator("#frame-status-line")
        expect(status).to_contain_text("has changed since this page was opened")
        form.get_by_role("button", name="Add to queue").click()
        expect(form.locator("#new-said")).to_contain_text("Reload the page.")
        assert not queries.jobs()
        status.get_by_role("link", name="Reload the page").click()
        expect(form.locator("footer")).to_contain_text(NUMBER)
        expect(status).not_to_contain_text("has changed")
        address = page.url
        page.close()  # Gradio loads a page that lost its answer anew, at a moment of its choice
        form.goto(address)
        expect(form.locator(".turn")).to_contain_text(ENDLESS)  # the prompt; its answer is lost
        ask(form, "One day")  # another process answers, if the one before is of another version
        expect(form.locator(".turn")).to_have_count(2)
        expect(form.locator(".turn").last).to_contain_text(re.compile(r"\d+ tokens"))
    form.close()
