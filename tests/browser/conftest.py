"""The dashboard in a process of its own, and a real Chromium to look at it. The process is forked
from one that has imported everything, and so are those it starts; `test_no_external` starts one as
people do."""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, expect
from transformers import LlamaConfig, LlamaForCausalLM

import app
from backend.errors import ConflictError
from backend.models.loading import load
from backend.queue import reports, service
from backend.queue.engines.local import LocalEngine
from backend.queue.roles import Actor
from backend.queue.supervisor import SupervisorLoop, shrink_log
from backend.settings import settings
from backend.store import queries
from backend.store.migrate import upgrade
from backend.store.session import engine_for
from backend.store.states import ACTIVE
from jobs import sweep
from jobs.kind import kinds
from jobs.submit import submit
from tests.conftest import SCREEN
from tests.fork_engine import ForkEngine, fork_all
from tests.fork_server import FORKS, begin_anew

PATIENCE_MS = 180_000  # upper bounds, for machines with more to do
expect.set_options(timeout=PATIENCE_MS)
ROOT = Path(__file__).resolve().parents[2]
VIOLATIONS = """
window.violations = [];
document.addEventListener('securitypolicyviolation',
  (event) => window.violations.push(`${event.violatedDirective} ${event.blockedURI}`));
"""
STARTS_S = 300
RUNS_S = 600
WIDTH = 4096
EVIL = "${document.body.dataset.x=1}<img src=x onerror=document.body.dataset.x=2>{{value}}"
PLUGIN = '["tests.plugins.job_kind"]'
HOST = Actor("mira", "host")
TOY = {"model": "toy", "threads": 1}
SMALL = {"segments": 8, "windows": 4}
TINY = {
    "steps": 4, "length": 64, "context": 64, "stages": "rtn, gptq, dlqat", "divergence": False,
}  # fmt: skip
SHORT = {"count": 2, "max_new_tokens": 8, "rounds": 1}


@dataclass(frozen=True)
class Dashboard:
    """A running dashboard and its data folder."""

    url: str
    data: Path
    process: ForkServerProcess


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def started(
    data: Path, environment: Mapping[str, str], port: int = 0, *, fresh: bool = False
) -> Iterator[Dashboard]:
    """The dashboard on this data folder, until the block ends.

    Args:
        fresh: what it starts are no forks, as in production.
    """
    port, log = port or free_port(), data.with_name("dashboard.log")
    own = {"PORT": str(port), "BROWSER": "false", "THREADS": "1"}
    here = {f"SLIMSCOPE_{name}": value for name, value in own.items()}
    quick = {"IDLE_EXIT": "1", "EXAMPLES": "false", "PLAYGROUND_IDLE": "8"}
    usual = {f"SLIMSCOPE_{name}": value for name, value in quick.items()}
    with_all = {**usual, **environment, **here}
    process = FORKS.Process(target=serve, args=(with_all, log, fresh))
    process.start()
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(url, process.is_alive, log)
        yield Dashboard(url, data, process)
    finally:
        process.kill()
        process.join()


def serve(environment: Mapping[str, str], log: Path, fresh: bool) -> None:
    """The life of the forked process."""
    os.chdir(ROOT)
    begin_anew(environment, log, log)
    if not fresh:
        fork_all()
    app.main()


def wait_for(url: str, alive: Callable[[], bool], log: Path | None = None) -> None:
    deadline = time.monotonic() + STARTS_S
    while True:
        assert alive(), log.read_text() if log else "the dashboard has ended"
        try:
            urllib.request.urlopen(url, timeout=5)
            return
        except OSError:
            assert time.monotonic() < deadline, "the dashboard did not start"
            time.sleep(0.2)


@pytest.fixture(scope="session")
def port() -> int:
    """Of all dashboards of `dashboard`: a browser that has seen one has the scripts of the next."""
    return free_port()


@pytest.fixture
def dashboard(data_dir: Path, port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Dashboard]:
    """With an empty data folder; whatever it started is ended."""
    monkeypatch.setenv("SLIMSCOPE_IDLE_EXIT", "1")
    settings.cache_clear()
    with started(data_dir, os.environ, port) as shown:
        yield shown
    for job in queries.jobs(ACTIVE):
        with suppress(ConflictError):  # it has ended
            for _ in range(2):  # asked twice it is killed, and not tried again
                service.cancel(job.run, HOST)
        for attempt in queries.attempts(job.id):
            if attempt.engine_ref:
                LocalEngine(1).kill(attempt.engine_ref)
    engine_for.cache_clear()


@contextmanager
def tab(browser: Browser, shown: Dashboard, **options: object) -> Iterator[Page]:
    """A watched page of a browser that has never been here."""
    context = browser.new_context(**SCREEN, **options)
    with watched(context, shown) as page:
        yield page
    context.close()


@contextmanager
def watched(context: BrowserContext, shown: Dashboard) -> Iterator[Page]:
    """A page that fails the test when its console shows an error or it asks another host."""
    page = context.new_page()
    complaints: list[str] = []
    faults = Faults()
    page.on("console", lambda m: complaints.append(m.text) if faults.holds(m) else None)
    page.on("domcontentloaded", faults.arrived)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda r: complaints.append(r.url) if is_foreign(r.url, shown) else None)
    page.set_default_timeout(PATIENCE_MS)
    yield page
    page.close()
    assert complaints == []


@pytest.fixture
def page(warm_context: BrowserContext, dashboard: Dashboard) -> Iterator[Page]:
    with warm_tab(warm_context, dashboard) as page:
        yield page


class Faults:
    """Which messages of a console are faults: errors, but for what Gradio says of the requests it
    cuts itself when a page is left, until the next page is there."""

    leaving = False

    def holds(self, message: ConsoleMessage) -> bool:
        cut = message.text.startswith("AbortError: signal is aborted")
        self.leaving |= cut
        lost = self.leaving and "Connection errored out" in message.text
        return message.type == "error" and not cut and not lost

    def arrived(self, _: Page) -> None:
        self.leaving = False


def is_foreign(url: str, dashboard: Dashboard) -> bool:
    own = (dashboard.url, dashboard.url.replace("http", "ws"), "data:", "blob:")
    return not url.startswith(own)


# a folder with runs, shared by the tests that only look -------------------------------------------


@pytest.fixture(scope="session")
def lab_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data folder of small runs carried out on the toy model, by whichever process of tests
    comes first: three of SDS (sds-0001 to sds-0003), one that failed (count-0004), one of DL-QAT
    (dlqat-0005), one of decoding speed (speed-0006). The name of those that succeeded is an attack.
    statistics-0007 looked at a layer of 4096 x 4096 weights."""
    data = shared_folder(tmp_path_factory) / "lab-runs"
    finished = data / "finished"
    with FileLock(f"{data}.lock"), pytest.MonkeyPatch.context() as patch:
        if not finished.exists():
            for name, value in lab_environment(data, data).items():
                patch.setenv(name, value)
            forget_settings()
            carry_out_the_runs()
            finished.touch()
    forget_settings()
    return data


def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A temporary folder of this session of tests, the same for all its processes."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


def lab_environment(data: Path, made: Path) -> dict[str, str]:
    """Of the data folder `data`, copied from `made`, where the models of its runs are."""
    here = {"DATA_DIR": str(data), "PLUGINS": PLUGIN, "IDLE_EXIT": "1", "SLOTS": "2"}
    here["MODEL_DIRS"] = json.dumps([str(made / "models")])
    return {f"SLIMSCOPE_{name}": value for name, value in here.items()}


@pytest.fixture(scope="session")
def shared_lab(lab_runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dashboard]:
    """A dashboard on a copy of those runs, one for each process of tests: some tests tag runs."""
    data = tmp_path_factory.mktemp("lab") / "data"
    shutil.copytree(lab_runs, data, ignore=shutil.ignore_patterns("models"))
    with started(data, os.environ | lab_environment(data, lab_runs)) as shown:
        yield shown


def carry_out_the_runs() -> None:
    """Queues the runs and waits for them."""
    upgrade()
    pruners = {"base": ["magnitude", "wanda", "sparsegpt"]}
    sweep.queue("sds", TOY | SMALL | {"pattern": "2:4"}, pruners, HOST, name=EVIL)
    submit("count", {"fails_at": 1}, HOST)
    submit("dlqat", TOY | SMALL | TINY, HOST, name=EVIL)
    submit("speed", TOY | SHORT, HOST, name=EVIL)
    submit("statistics", {"model": str(wide_model()), "threads": 1}, HOST, name=EVIL)
    loop, deadline = SupervisorLoop(ForkEngine(2)), time.monotonic() + RUNS_S
    while loop.turn():
        assert time.monotonic() < deadline, "the runs did not end"
        time.sleep(0.1)
    shrink_log()
    states = {job.run: job.state for job in queries.jobs()}
    failed = {run for run, state in states.items() if state != "succeeded"}
    assert failed == {"count-0004"}, states
    write_a_report()


def write_a_report() -> None:
    """Number 1: a text, charts of two pages, and a table."""
    number = reports.create_report("What pruning does", HOST)
    reports.add_text(number, f"# Finding\n\n{EVIL}", HOST)
    reports.add_chart(number, "weights-heatmap", "run=sds-0001", HOST)
    for chart in ("compare-stages", "compare-figures"):
        reports.add_chart(number, chart, "ids=sds-0001,sds-0002", HOST)


def wide_model() -> Path:
    """A folder with a model of one block that is as wide as those of large models."""
    folder = settings().root / "models" / "wide"
    config = LlamaConfig(
        hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=1, num_attention_heads=32,
        num_key_value_heads=1, vocab_size=512, tie_word_embeddings=True, dtype="bfloat16",
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    load("toy").tokenizer.save_pretrained(folder)
    return folder


def forget_settings() -> None:
    """The next look is at what the environment says now."""
    for held in (settings, engine_for, kinds):
        held.cache_clear()


@pytest.fixture
def lab(shared_lab: Dashboard, monkeypatch: pytest.MonkeyPatch) -> Iterator[Dashboard]:
    """The same; `queries` read it."""
    monkeypatch.setenv("SLIMSCOPE_DATA_DIR", str(shared_lab.data))
    forget_settings()
    yield shared_lab
    forget_settings()


@contextmanager
def warm_tab(context: BrowserContext, shown: Dashboard) -> Iterator[Page]:
    """A watched page that finds nothing but cached files, and leaves nothing else behind."""
    with watched(context, shown) as page:
        yield page
        if not page.is_closed():
            forget(page, shown.url)


def forget(page: Page, origin: str) -> None:
    """What its browser holds of an address, but for cached files."""
    everything = {"origin": origin, "storageTypes": "cookies,local_storage,indexeddb"}
    page.context.new_cdp_session(page).send("Storage.clearDataForOrigin", everything)


@pytest.fixture
def visitor(warm_context: BrowserContext, lab: Dashboard) -> Iterator[Page]:
    """A page of one who has been here before."""
    with warm_tab(warm_context, lab) as page:
        yield page


def patient(seconds: float) -> float:
    """So long on two free cores; longer where other work keeps them busy."""
    return seconds * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def opened(page: Page, url: str) -> None:
    """Goes there and waits until the page has drawn what it knows."""
    page.goto(url)
    expect(page.locator("h1")).to_have_count(1)
    expect(page.locator("#frame-status-line a, #frame-status-line span").first).to_be_visible()
    page.wait_for_function(
        "![...document.querySelectorAll('.skeleton')].some((one) => one.offsetParent)"
    )
