"""The dashboard in a real browser under its own policy: a hostile page gets nothing, and a token
makes a host. That no page breaks the policy or asks another host is in `test_every_page`."""

import os
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from backend.queue import conversations, service
from backend.store import queries
from backend.store.migrate import upgrade
from jobs.submit import submit
from tests.browser.conftest import (
    EVIL,
    HOST,
    PLUGIN,
    STARTS_S,
    VIOLATIONS,
    Dashboard,
    end_runs,
    forget_settings,
    opened,
    started,
    warm_tab,
)
from tests.browser.test_playground import ask, choose
from tests.waiting import until


def hostile_text_does_not_run(page: Page, url: str) -> None:
    """If text ever became HTML: no inline script and no handler would run."""
    opened(page, url)
    page.evaluate(VIOLATIONS)
    for attack in (
        "<img src=data:, onerror=document.body.dataset.x=1>",
        "<svg onload=document.body.dataset.x=1></svg>",
        "<iframe srcdoc='<script>parent.document.body.dataset.x=1</script>'></iframe>",
    ):
        page.evaluate("html => document.body.insertAdjacentHTML('beforeend', html)", attack)
    page.evaluate("""() => {
      const script = document.createElement('script');
      script.textContent = 'document.body.dataset.x = 1';
      document.body.append(script);
    }""")
    page.wait_for_function("window.violations.length >= 3")
    assert page.evaluate("document.body.dataset.x") is None


class Hostile(BaseHTTPRequestHandler):
    """Another site: tries to read, to change, and to frame the dashboard."""

    target = run = ""

    def do_GET(self) -> None:
        script = f"""
          const target = {self.target!r}, run = target + '/slimscope/api/runs/{self.run}';
          const body = JSON.stringify({{}});
          const tries = [
            fetch(target + '/slimscope/api/runs').then(r => r.status),
            fetch(run + '/cancel', {{method: 'POST'}}).then(r => r.status),
            fetch(run + '/cancel', {{method: 'POST', mode: 'no-cors', body}}),
          ];
          Promise.allSettled(tries).then(all => {{
            document.title = all.map(one => one.value || one.status).join(' ');
          }});
        """
        page = (
            f"<title>waiting</title><iframe src='{self.target}'></iframe><script>{script}</script>"
        )
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.end_headers()
        self.wfile.write(page.encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hostile(workshop: Dashboard) -> Iterator[tuple[str, str]]:
    """The address of that site, and the run it is after."""
    run = submit("count", {"steps": 3000}, HOST).run
    site = type("Site", (Hostile,), {"target": workshop.url, "run": run})
    with HTTPServer(("127.0.0.1", 0), site) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://localhost:{server.server_port}", run
        server.shutdown()
    service.cancel([run], HOST)


def test_hostile_text_and_hostile_sites_get_nothing(
    warm_context: BrowserContext, workshop: Dashboard, hostile: tuple[str, str]
) -> None:
    (address, run), page = hostile, warm_context.new_page()
    hostile_text_does_not_run(page, workshop.url)
    page.goto(address)
    page.wait_for_function("document.title !== 'waiting'")
    assert page.title() == "403 403 rejected"
    assert queries.job(run).desired == "run"
    assert workshop.url not in page.frames[1].url  # a browser shows its own page instead
    page.close()


@pytest.fixture
def shared(
    data_dir: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, Path]]:
    """A dashboard other machines can reach, and the file of what it has printed."""
    for name, value in {"HOST": "0.0.0.0", "IDLE_EXIT": "1", "PLUGINS": PLUGIN}.items():
        monkeypatch.setenv(f"SLIMSCOPE_{name}", value)
    forget_settings()
    upgrade()
    submit("count", {"steps": 3000}, HOST)  # it is at work until the end
    with started(data_dir, os.environ, port) as shown:
        yield shown.url, data_dir.with_name("dashboard.log")
    end_runs()
    forget_settings()


def test_guests_ask_and_vote_and_the_printed_link_makes_a_host_and_leaves_no_trace(
    warm_context: BrowserContext, other_context: BrowserContext, shared: tuple[str, Path]
) -> None:
    url, log = shared
    guests_ask_and_vote(warm_context, other_context, url)
    printed = log.read_text()
    link = next(word for word in printed.split() if "/slimscope/host#" in word)
    with warm_tab(other_context, url) as page:
        the_link_makes_a_host(page, url, link)
    token = link.partition("#")[2]
    assert log.read_text().count(token) == 1  # once, at the start


def guests_ask_and_vote(one: BrowserContext, another: BrowserContext, url: str) -> None:
    with warm_tab(one, url) as guest:
        guest.goto(f"{url}/playground")
        choose(guest, "toy, toy")
        guest.locator("#playground-field-blind input").check()
        guest.locator("#playground-name").locator("input, textarea").fill(f"Ada {EVIL}"[:40])
        ask(guest, "One day")
        until(is_answered, STARTS_S)  # the first answer waits for a process with its model
        expect(guest.get_by_role("button", name="B is better")).to_be_visible()
        (asked,) = conversations.newest_conversations(9)
        author, number = asked.newest.author, asked.newest.id
        assert author.startswith("guest-") and " Ada " in author
        guest.get_by_role("button", name="B is better").click()
        expect(guest.get_by_test_id("vote")).to_contain_text("Your vote: toy is better")
    with warm_tab(another, url) as other:
        other.goto(f"{url}/playground?chat={number}")
        other.get_by_role("button", name="Tie").click()
        expect(other.get_by_test_id("vote")).to_contain_text("All votes")
    votes = conversations.turn(number).votes
    assert len(votes) == 2 and all(voter.startswith("guest-") for voter in votes)


def is_answered() -> bool:
    """True if both sides of the newest prompt are answered."""
    newest = conversations.newest_conversations(1)
    return bool(newest) and conversations.turn(newest[0].newest.id).finished


def the_link_makes_a_host(page: Page, url: str, link: str) -> None:
    token = link.partition("#")[2]
    asked: list[str] = []
    page.on("request", lambda r: asked.append(f"{r.method} {r.url} {r.headers.get('referer')}"))
    page.goto(f"{url}/runs")
    expect(page.locator("#frame-status-line")).to_contain_text("Signed in as guest-")
    expect(page.get_by_test_id("cancel-count-0001")).to_be_disabled()
    page.goto(link.replace(socket.gethostname(), "127.0.0.1"))
    page.wait_for_url(f"{url}/")
    expect(page.locator("#frame-status-line")).not_to_contain_text("guest")
    page.goto(f"{url}/runs")
    expect(page.locator("[data-do]").first).to_be_enabled()
    assert token not in " ".join(asked)  # it went in a body alone
    assert page.evaluate("document.cookie") == "" and token not in page.content()
    (cookie,) = [each for each in page.context.cookies() if "-host-" in each["name"]]
    assert cookie["httpOnly"] and cookie["sameSite"] == "Strict" and token not in cookie["value"]
