"""The dashboard in a process of its own, and a real Chromium to look at it. The process is forked
from one that has imported everything, and so are those it starts; `test_no_external` starts one as
people do."""

import json
import os
import re
import socket
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partialmethod
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest
import torch
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, expect
from playwright.sync_api import sync_playwright as playwright
from transformers import LlamaConfig, LlamaForCausalLM

import app
from backend.errors import ConflictError
from backend.models.loading import load
from backend.queue import service, stories
from backend.queue.actor import Actor
from backend.queue.engines.local import LocalEngine
from backend.queue.supervisor import SupervisorLoop, shrink_log
from backend.settings import settings
from backend.store import queries
from backend.store.migrate import upgrade
from backend.store.session import engine_for
from backend.store.states import ACTIVE
from jobs import sweep
from jobs.kind import kinds
from jobs.submit import submit
from tests.browser.chromium import find
from tests.conftest import ALL
from tests.fork_engine import ForkEngine, fork_all
from tests.fork_server import FORKS, begin_anew
from ui import app as pages_of_app
from ui import frame
from ui.frame import VERSION
from ui.pages.new_run import page as new_run

PATIENCE_MS = 20_000  # upper bounds, for machines with more to do
expect.set_options(timeout=PATIENCE_MS)
# Else a page is drawn anew sixty times a second for as long as something is waited for.
Page.wait_for_function = partialmethod(Page.wait_for_function, polling=50)  # type: ignore
ROOT = Path(__file__).resolve().parents[2]
VIOLATIONS = """
window.violations = [];
document.addEventListener('securitypolicyviolation',
  (event) => window.violations.push(`${event.violatedDirective} ${event.blockedURI}`));
"""
STARTS_S = 300
RUNS_S = 600
WIDTH = 4096 if ALL else 1024
EVIL = "${document.body.dataset.x=1}<img src=x onerror=document.body.dataset.x=2>{{value}}"
PLUGIN = '["tests.plugins.job_kind"]'
HOST = Actor("mira", "host")
TOY = {"model": "toy", "threads": 1}
SMALL = {"segments": 8, "windows": 4, "context": 64}
PRUNED = {"pattern": "2:4", "adjust_steps": 5, "redense_steps": 5, "control": True}
TINY = {"steps": 4, "length": 64, "stages": "rtn, gptq, dlqat"}
PROFILED = {"context": 64, "segments": 8, "formats": "int3-g64, int4-g64, 50%"}
SHORT = {"count": 2, "max_new_tokens": 8, "rounds": 1}
# Those of Playwright, whose list is replaced, and two that draw a window nobody sees at every page.
OFF = (
    "AvoidUnnecessaryBeforeUnloadCheckSync,DestroyProfileOnBrowserClose,HttpsUpgrades,"
    "HttpsFirstBalancedModeAutoEnable,MediaRouter,PaintHolding,ThirdPartyStoragePartitioning,"
    "OptimizationHints,SpareRendererForSitePerProcess,WebUIOmniboxPopup,WebUIOmniboxAimPopup"
)
QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-sync",
    "--process-per-site",
    f"--disable-features={OFF}",
)
SCREEN = {"viewport": {"width": 1400, "height": 900}, "reduced_motion": "reduce"}
PHONE = {"width": 390, "height": 844}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.browser)
            item.add_marker(pytest.mark.timeout(900))


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    path = find()
    assert path, "No Chromium: run `make chromium`."
    with playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=list(QUIET))
        yield browser
        browser.close()


@contextmanager
def warm(browser: Browser) -> Iterator[BrowserContext]:
    """A browser that need not load and compile the scripts of a dashboard for every test. An empty
    page of the host stays open: so does the process that draws it, and draws the others."""
    context = browser.new_context(**SCREEN)
    kept = context.new_page()
    kept.route("**", lambda route: route.fulfill(body=""))
    kept.goto("http://127.0.0.1/")
    yield context
    context.close()


@pytest.fixture(scope="package")
def warm_context(browser: Browser) -> Iterator[BrowserContext]:
    """The browser of one who has been here before."""
    with warm(browser) as context:
        yield context


@pytest.fixture(scope="package")
def other_context(browser: Browser) -> Iterator[BrowserContext]:
    """That of somebody else."""
    with warm(browser) as context:
        yield context


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
    data: Path, environment: Mapping[str, str], port: int = 0, version: str = VERSION
) -> Iterator[Dashboard]:
    """The dashboard on this data folder, until the block ends; what it starts are forks. Its pages
    are those of a `version`."""
    port, log = port or free_port(), data.with_name("dashboard.log")
    own = {"PORT": str(port), "THREADS": "1"}
    here = {f"SLIMSCOPE_{name}": value for name, value in own.items()} | {"BROWSER": "true"}
    quick = {"IDLE_EXIT": "1", "EXAMPLES": "false"}
    usual = {f"SLIMSCOPE_{name}": value for name, value in quick.items()}
    with_all = {**usual, **environment, **here}
    process = FORKS.Process(target=serve, args=(with_all, log, version))
    process.start()
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(url, process.is_alive, log)
        yield Dashboard(url, data, process)
    finally:
        process.kill()
        process.join()


def serve(environment: Mapping[str, str], log: Path, version: str) -> None:
    """The life of the forked process."""
    os.chdir(ROOT)
    for module in (frame, pages_of_app, new_run):
        module.VERSION = version  # type: ignore[attr-defined]
    begin_anew(environment, log, log)
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


@pytest.fixture(scope="package")
def port() -> int:
    """Of all dashboards of `dashboard`: a browser that has seen one has the scripts of the next."""
    return free_port()


@pytest.fixture
def dashboard(data_dir: Path, port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Dashboard]:
    """With an empty data folder; whatever it started is ended."""
    monkeypatch.setenv("SLIMSCOPE_IDLE_EXIT", "1")
    monkeypatch.setenv("SLIMSCOPE_PLUGINS", PLUGIN)
    forget_settings()
    with started(data_dir, os.environ, port) as shown:
        yield shown
    end_runs()
    forget_settings()


def end_runs() -> None:
    """Kills the runs of the data folder."""
    for job in queries.jobs(ACTIVE):
        with suppress(ConflictError):  # it has ended
            for _ in range(2):  # asked twice it is killed, and not tried again
                service.cancel([job.run], HOST)
        for attempt in queries.attempts(job.id):
            if attempt.engine_ref:
                LocalEngine(1).kill(attempt.engine_ref)
    engine_for.cache_clear()


@contextmanager
def tab(browser: Browser, url: str) -> Iterator[Page]:
    """A watched page of a browser that has never been here."""
    context = browser.new_context(**SCREEN)
    with watched(context, url) as page:
        yield page
    context.close()


@contextmanager
def watched(context: BrowserContext, url: str) -> Iterator[Page]:
    """A page that fails the test when its console shows an error or it asks another host."""
    page = context.new_page()
    complaints: list[str] = []
    faults = Faults()
    page.on("console", lambda m: complaints.append(m.text) if faults.holds(m) else None)
    page.on("domcontentloaded", faults.arrived)
    page.on("pageerror", lambda error: complaints.append(error.stack or str(error)))
    page.on("request", lambda r: complaints.append(r.url) if is_foreign(r.url, url) else None)
    page.set_default_timeout(PATIENCE_MS)
    yield page
    page.close()
    assert complaints == []


@pytest.fixture
def page(warm_context: BrowserContext, dashboard: Dashboard) -> Iterator[Page]:
    with warm_tab(warm_context, dashboard.url) as page:
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


def is_foreign(asked: str, own: str) -> bool:
    return not asked.startswith((own, own.replace("http", "ws"), "data:", "blob:"))


def variables(data: Path, **values: str) -> dict[str, str]:
    """The environment of a dashboard and its data folder, in which runs that count are known."""
    here = {"DATA_DIR": str(data), "PLUGINS": PLUGIN, **values}
    return {f"SLIMSCOPE_{name}": value for name, value in here.items()}


@contextmanager
def reading(shown: Dashboard) -> Iterator[Dashboard]:
    """Meanwhile this process reads, and adds to, what a dashboard shows."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables(shown.data).items():
            patch.setenv(name, value)
        forget_settings()
        yield shown
    forget_settings()


@pytest.fixture(scope="package")
def shared_workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dashboard]:
    """A dashboard whose runs the tests begin. PyTorch decodes in its playground, which leaves time
    to look at an answer and to stop it."""
    data = tmp_path_factory.mktemp("workshop") / "data"
    here = variables(data, IDLE_EXIT="15", NATIVE="false")  # one supervisor
    with started(data, os.environ | here) as shown:
        yield shown


@pytest.fixture
def workshop(shared_workshop: Dashboard) -> Iterator[Dashboard]:
    """The same; the test reads it and adds to it."""
    with reading(shared_workshop):
        yield shared_workshop


# a folder with runs, shared by the tests that only look -------------------------------------------


@pytest.fixture(scope="package")
def shared_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dashboard]:
    """A dashboard of small runs carried out on the toy model: three of SDS (sds-0001 to sds-0003),
    one that failed (count-0004), one of DL-QAT (dlqat-0005), one benchmark (benchmark-0006). The
    name of those that succeeded is an attack. statistics-0007 looked at a layer of WIDTH x WIDTH
    weights, profile-0008 at the sensitivity of each layer."""
    data = tmp_path_factory.mktemp("lab") / "data"
    here = variables(data, SLOTS="2", MODEL_DIRS=json.dumps([str(data / "models")]))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in here.items():
            patch.setenv(name, value)
        forget_settings()
        carry_out_the_runs()
    forget_settings()
    with started(data, os.environ | here) as shown:
        yield shown


@pytest.fixture
def lab(shared_lab: Dashboard) -> Iterator[Dashboard]:
    """The same; `queries` read it."""
    with reading(shared_lab):
        yield shared_lab


def carry_out_the_runs() -> None:
    """Queues the runs and waits for them."""
    upgrade()
    pruners = {"base": ["magnitude", "wanda", "sparsegpt"]}
    sweep.queue("sds", TOY | SMALL | PRUNED, pruners, HOST, name=EVIL)
    submit("count", {"fails_at": 1}, HOST)
    submit("dlqat", TOY | SMALL | TINY, HOST, name=EVIL)
    submit("benchmark", TOY | SHORT, HOST, name=EVIL)
    submit("statistics", {"model": str(wide_model()), "threads": 1}, HOST, name=EVIL)
    submit("profile", TOY | PROFILED, HOST, name=EVIL)
    loop, deadline = SupervisorLoop(ForkEngine(2)), time.monotonic() + RUNS_S
    while loop.turn():
        assert time.monotonic() < deadline, "the runs did not end"
        time.sleep(0.1)
    shrink_log()
    states = {job.run: job.state for job in queries.jobs()}
    failed = {run for run, state in states.items() if state != "succeeded"}
    assert failed == {"count-0004"}, states
    write_a_story()


def write_a_story() -> None:
    """Number 1: charts of two pages, a table, and a whole page."""
    number = stories.create_story("What pruning does", HOST)
    stories.add_view(number, "weights?run=sds-0001", "weights-heatmap", EVIL, HOST)
    for chart in ("compare-stages", "compare-figures"):
        stories.add_view(number, "compare?ids=sds-0001,sds-0002", chart, "", HOST)
    stories.add_view(number, "weights?run=sds-0001&stage=dense", "", "", HOST)


def wide_model() -> Path:
    """A folder with a model of one wide block; in `make test-all` as wide as large models."""
    folder = settings().root / "models" / "wide"
    config = LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=32,
        num_key_value_heads=1,
        vocab_size=512,
        tie_word_embeddings=True,
        dtype="bfloat16",
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    load("toy").tokenizer.save_pretrained(folder)
    return folder


def forget_settings() -> None:
    """The next look is at what the environment says now."""
    for held in (settings, engine_for, kinds):
        held.cache_clear()


@contextmanager
def warm_tab(context: BrowserContext, url: str) -> Iterator[Page]:
    """A watched page that finds nothing but cached files, and leaves nothing else behind."""
    with watched(context, url) as page:
        yield page
        if not page.is_closed():
            forget(page, url)


def forget(page: Page, origin: str) -> None:
    """What its browser holds of an address, but for cached files."""
    everything = {"origin": origin, "storageTypes": "cookies,local_storage,indexeddb"}
    page.context.new_cdp_session(page).send("Storage.clearDataForOrigin", everything)


@pytest.fixture
def visitor(warm_context: BrowserContext, lab: Dashboard) -> Iterator[Page]:
    """A page of one who has been here before."""
    with warm_tab(warm_context, lab.url) as page:
        yield page


def patient(seconds: float) -> float:
    """So long on two free cores; longer where other work keeps them busy."""
    return seconds * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def opened(page: Page, url: str) -> None:
    """Goes there and waits until the page has drawn what it knows."""
    page.goto(url)
    expect(page.locator("h1")).to_have_count(1)
    expect(page.locator("#frame-status-line[data-heard]")).to_have_count(1)
    page.wait_for_function(
        "![...document.querySelectorAll('.skeleton')].some((one) => one.offsetParent)"
    )


def code_to_follow(presenter: Page) -> str:
    """The code under which a phone follows what is presented here."""
    presenter.get_by_role("button", name="Follow on a phone").click()
    code = presenter.locator("dialog i")
    expect(code).to_have_text(re.compile("^[A-Z]{6}$"))
    told = code.inner_text()
    presenter.keyboard.press("Escape")
    return told
