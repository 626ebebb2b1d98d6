"""Who asks, what the address says, what the status strip tells, and what every page holds."""

from collections.abc import Iterator
from typing import Any

import gradio as gr
import pytest
from plotly.offline import get_plotlyjs
from starlette.applications import Starlette
from starlette.testclient import TestClient

from backend.queue.scheduling import SILENT_MS
from backend.settings import Settings
from backend.store.copies import IntegrityResult, check_integrity
from backend.store.session import database_ms, writing
from backend.store.tables import CLUSTER, Job, Supervisor
from ui import app, frame
from ui.app import not_found
from ui.format import moment
from ui.health import READER
from ui.pages import pages
from ui.static import CACHE_FOREVER, SCRIPT_URL
from ui.theme import DARK, LIGHT


def asked(address: str = "127.0.0.1", query: dict[str, str] | None = None, **headers: str) -> Any:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return gr.Request(
        client={"host": address, "port": 1},
        headers={"host": "localhost:7860"} | names,
        query_params=query or {},
    )


@pytest.mark.parametrize(
    ("request_", "role"),
    [
        (asked(), "host"),
        (asked("::1", host="[::1]:7860"), "host"),
        (asked("10.0.0.7"), "guest"),
        (asked(x_forwarded_for="10.0.0.7"), "guest"),
        (asked(X_Forwarded_For="127.0.0.1"), "guest"),
        (asked(forwarded="for=10.0.0.7"), "guest"),
        (asked(host="slimscope.example:7860"), "guest"),
        (asked(host=""), "guest"),
        (asked("not an address"), "guest"),
        (None, "guest"),
    ],
)
def test_only_who_sits_at_this_machine_is_the_host(request_: Any, role: str) -> None:
    assert frame.current_user(request_).role == role


def test_the_address_is_read_with_care() -> None:
    request = asked(query={"run": "sds-0042", "bad": "<img>", "y": "cubic", "long": "a" * 500})
    assert frame.query(request, "run") == "sds-0042"
    assert frame.query(request, "absent", "x") == "x"
    assert frame.query(request, "bad", "x") == "x"
    assert frame.query(request, "long", "x") == "x"
    assert frame.query(request, "y", "linear", ("linear", "log")) == "linear"


@pytest.fixture
def client(seeded: Settings, built: gr.Blocks) -> Iterator[TestClient]:
    READER._pending = None
    shown = Starlette(routes=app.launch_options()["app_kwargs"]["routes"])
    shown.get_blocks = lambda: built  # type: ignore[attr-defined]  # as Gradio's own has it
    with TestClient(shown, client=("127.0.0.1", 1)) as made:
        yield made
    READER._pending = None


LOCAL = {"host": "localhost:7860"}


def test_pulse_tells_what_runs_and_moves_only_with_the_database(client: TestClient) -> None:
    first = client.get("/slimscope/pulse", headers=LOCAL).json()
    assert first["live"] and "sds-0002 61\u00a0%; " in first["badge"]
    assert "1 running, 1 waiting" in first["badge"] and first["html"].strip() == ""
    READER._pending = None
    assert client.get("/slimscope/pulse", headers=LOCAL).json() == first
    with writing() as session:
        session.get_one(Job, 2).done = 0.7
    READER._pending = None
    assert client.get("/slimscope/pulse", headers=LOCAL).json()["cursor"] != first["cursor"]
    html = {
        name: client.get("/slimscope/pulse", headers=headers).json()["html"]
        for name, headers in {"host": LOCAL, "guest": LOCAL | {"forwarded": "for=x"}}.items()
    }
    assert "guest" in html["guest"] and "guest" not in html["host"]


def test_a_cluster_that_does_not_answer_is_told_on_every_page(client: TestClient) -> None:
    assert "cluster" not in client.get("/slimscope/pulse", headers=LOCAL).json()["html"]
    with writing() as session:
        since = database_ms(session) - SILENT_MS - 1000
        session.merge(Supervisor(host=CLUSTER, beat_at=since))
    READER._pending = None
    told = client.get("/slimscope/pulse", headers=LOCAL).json()["html"]
    assert f"The cluster has not answered since {moment(since)}. Runs continue." in told


def test_a_damaged_database_is_told_on_every_page(
    client: TestClient, seeded: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_integrity()
    guest = LOCAL | {"forwarded": "for=x"}
    assert "damaged" not in client.get("/slimscope/pulse", headers=LOCAL).json()["html"]
    damaged = IntegrityResult(0, ["row 7 <b>missing</b>"])
    monkeypatch.setattr("ui.frame.last_check", lambda: damaged)
    READER._pending = None  # a second later
    host, visitor = (
        client.get("/slimscope/pulse", headers=who).json()["html"] for who in (LOCAL, guest)
    )
    assert "slimscope restore" in host and "<b>" not in host
    assert "The database is damaged" in visitor and "slimscope restore" not in visitor


def test_the_plotly_script_is_the_packages_own_compressed_and_kept(client: TestClient) -> None:
    plain = client.get(f"/{SCRIPT_URL}", headers={"accept-encoding": "identity"})
    packed = client.get(f"/{SCRIPT_URL}", headers={"accept-encoding": "gzip"})
    assert plain.content == packed.content == get_plotlyjs().encode()
    assert packed.headers["content-encoding"] == "gzip"
    assert int(packed.headers["content-length"]) < len(plain.content) / 2.5
    assert {plain.headers["cache-control"], packed.headers["cache-control"]} == {CACHE_FOREVER}


@pytest.fixture(scope="module")
def config(built: gr.Blocks) -> dict[str, Any]:
    return built.get_config_file()


def test_nothing_is_drawn_by_gradios_plot_and_no_name_is_twice(
    config: dict[str, Any],
) -> None:
    assert "plot" not in {c["type"] for c in config["components"]}
    for page in pages():
        own = {*config["page"][page.path]["components"]}
        ids = [c["props"].get("elem_id") for c in config["components"] if c["id"] in own]
        named = [i for i in ids if i]
        assert len(named) == len(set(named))
    public = [d for d in config["dependencies"] if d.get("api_visibility") == "public"]
    assert not [d for d in public if d.get("backend_fn")]


def test_an_unknown_address_gets_a_page_whose_text_is_text() -> None:
    with TestClient(Starlette(exception_handlers={404: not_found})) as client:
        page = client.get("/<b>nothing", headers={"accept": "text/html"})
        assert page.status_code == 404 and page.headers["content-type"].startswith("text/html")
        assert "There is no page at /&lt;b&gt;nothing" in page.text and 'href="runs"' in page.text
        assert "//" not in page.text.partition("<script>")[2], "its lines are joined"
        assert f"--text:{LIGHT.text};" in page.text and f"--text:{DARK.text};" in page.text
        deeper = client.get("/weights/map/x", headers={"accept": "text/html"}).text
        assert 'href="../../"' in deeper and 'href="../../runs"' in deeper
        answer = client.get("/nothing", headers={"accept": "application/json"})
        assert (answer.status_code, answer.json()) == (404, {"detail": "Not Found"})
