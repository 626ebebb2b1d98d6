"""What no request reaches, whom the dashboard does not answer, and what every answer carries."""

import re
from pathlib import Path

import gradio as gr
import pytest
from gradio.routes import App
from starlette.testclient import TestClient

from backend.settings import Settings, settings
from tests.ui.visits import SITE, Visit, event_of, set_up
from ui import app
from ui.api_errors import API_PATH
from ui.pages import pages
from ui.security import auth, middleware
from ui.security.connections import GuardedProtocol

SPACE = "me-slimscope.hf.space"
PAGES = [f"/{page.path}" for page in pages()]


def test_large_bodies_and_bodies_without_a_length_are_refused(visit: Visit) -> None:
    client = visit()
    big = b"x" * (middleware.MAX_BODY_BYTES + 1)
    assert client.post("/gradio_api/queue/join", content=big).status_code == 413
    assert client.post("/slimscope/api/submit/sds", content=iter([b"{}"])).status_code == 411


def test_the_dashboard_is_served_with_limits_on_connections(blocks: gr.Blocks) -> None:
    config = blocks.server.config
    assert config.http_protocol_class is GuardedProtocol
    assert config.backlog < 1024 and config.ws_protocol_class is None


def test_refusals_are_logged_on_one_line(visit: Visit, caplog: pytest.LogCaptureFixture) -> None:
    visit(client="10.0.0.7").get("/gradio_api/file=/etc/passwd%0A2026 all is well")
    (said,) = caplog.messages
    assert "10.0.0.7 GET /gradio_api/file=/etc/passwd" in said and "\n" not in said


# doors --------------------------------------------------------------------------------------------


def test_no_file_of_the_machine_can_be_fetched(visit: Visit, seeded: Settings) -> None:
    log = seeded.artifacts / "sds-0001" / "a1" / "log.txt"
    log.parent.mkdir(parents=True)
    log.write_text("secret of the log")
    code = Path(app.__file__)
    targets = [
        seeded.root / "results.db",
        log,
        code,
        Path("/proc/self/environ"),
        Path("/etc/passwd"),
    ]
    client = visit()
    for target in targets:
        assert target.exists()
        relative = Path("../" * 12) / str(target)[1:]
        for path in (
            f"/gradio_api/file={target}",
            f"/gradio_api/file/{target}",
            f"/file={target}",
            f"/gradio_api/file={relative}",
            f"/static/{relative}",
            f"/assets/{relative}",
            f"/svelte/{relative}",
            f"/static/{str(relative).replace('/', '%2F')}",
            f"/assets/..%2f..%2f..%2f..%2f{target}",
            f"/gradio_api/file%3D{target}",
            f"/gradio_api/proxy=file://{target}",
            f"/slimscope/api/runs/{target}",
            f"/gradio_api//file={target}",
            f"//gradio_api/file={target}",
        ):
            answer = client.get(path)
            assert answer.status_code in (403, 404), (path, answer.status_code)
            assert "secret" not in answer.text and "root:" not in answer.text


def test_gradio_itself_would_serve_no_file_either(visit: Visit, seeded: Settings) -> None:
    """The second lock: Gradio's own door, without our guard before it."""
    blocks = app.build(pages()[:1])
    blocks.blocked_paths = app.launch_options()["blocked_paths"]
    blocks.allowed_paths = ["/"]
    inside = TestClient(App.create_app(blocks))
    for target in (seeded.root / "results.db", Path(app.__file__), seeded.cache_dir / "models"):
        assert inside.get(f"/gradio_api/file={target}").status_code == 403


def test_doors_no_page_uses_are_closed(visit: Visit) -> None:
    client = visit()
    for method, path in (
        ("POST", "upload"),
        ("GET", "file=http://example.org/"),
        ("GET", "proxy=http://a.hf.space"),
        ("POST", "call/act"),
        ("POST", "call/v2/act"),
        ("POST", "api/act"),
        ("POST", "run/act"),
        ("POST", "component_server"),
        ("POST", "process_recording"),
        ("POST", "vibe-edit"),
        ("GET", "deep_link"),
        ("GET", "info"),
        ("GET", "openapi.json"),
        ("GET", "custom_component"),
        ("GET", "dev/reload"),
        ("GET", "token"),
        ("GET", "runs"),
        ("GET", "mcp/"),
        ("GET", "queue/status"),
        ("GET", "profiling/traces"),
        ("GET", f"queue/{'x' * 300}"),
    ):
        assert client.request(method, f"/gradio_api/{path}").status_code == 404, path
    for path in (f"/static/{'x' * 300}", "/pwa_icon/", "/pwa_icon/64"):
        assert client.get(path).status_code == 404, path
    icons = client.get("/manifest.json").json()["icons"]
    assert [client.get(icon["src"]).headers["content-type"] for icon in icons] == ["image/svg+xml"]
    assert 'content="Gradio"' not in client.get("/").text
    for path in ("/monitoring", "/login", "/logout", "/config", "/docs", "/redoc", "/openapi.json"):
        assert client.get(path).status_code == 404, path


# other sites --------------------------------------------------------------------------------------


def test_other_sites_cannot_change_anything(visit: Visit, web: App) -> None:
    body = {"fn_index": event_of(web, "runs-queue", "act"), "data": [], "session_hash": "x"}
    for headers, passes in (
        ({}, True),
        ({"origin": SITE}, True),
        ({"origin": "http://evil.example"}, False),
        ({"origin": "http://127.0.0.1:9999"}, False),
        ({"origin": "null"}, False),
        ({"origin": "http://["}, False),
        ({"sec-fetch-site": "same-origin", "origin": "https://behind.a.proxy"}, True),
        ({"sec-fetch-site": "cross-site"}, False),
        ({"sec-fetch-site": "same-site", "origin": SITE}, False),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, False),
    ):
        client = visit(**headers)
        status = client.post("/slimscope/api/runs/sds-0005/cancel").status_code  # ended: harmless
        assert status == (409 if passes else 403), headers
        status = client.post("/gradio_api/run/predict", json=body).status_code
        assert status == (200 if passes else 403), headers


def test_other_sites_can_link_here_but_not_read(visit: Visit) -> None:
    followed = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    assert visit(**followed).get("/runs").status_code == 200
    for headers in ({"origin": "http://evil.example"}, {"sec-fetch-site": "cross-site"}):
        answer = visit(**headers).get("/slimscope/api/runs")
        assert answer.status_code == 403 and "evil" not in str(answer.headers.get("vary"))


def test_on_loopback_no_other_name_is_answered(
    visit: Visit, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("127.0.0.1:7860", "localhost:7860", "[::1]:7860"):
        assert visit(host=name).get("/").status_code == 200
    for name in ("evil.example:7860", "127.0.0.1.evil.example", "", "slimscope.lab.org"):
        for path in ("/", "/slimscope/api/runs", "/slimscope/pulse", "/theme.css"):
            assert visit(host=name).get(path).status_code == 421
    set_up(monkeypatch, NAMES='["Slimscope.lab.org"]')
    assert visit(host="slimscope.lab.org").get("/slimscope/pulse").status_code == 200
    assert visit(host="evil.example").get("/slimscope/pulse").status_code == 421


# what every answer carries ------------------------------------------------------------------------


def test_only_scripts_of_the_page_itself_run(visit: Visit) -> None:
    seen = set()
    for path in (*PAGES, "/slimscope/host", "/slimscope/docs"):
        answer = visit().get(path)
        parts = answer.headers["content-security-policy"].split("; ")
        policy = dict(part.split(" ", 1) for part in parts)
        assert answer.status_code == 200
        assert policy["default-src"] == "'self'" and policy["frame-ancestors"] == "'self'"
        assert "unsafe-inline" not in policy["script-src"] and "http" not in policy["script-src"]
        nonce = re.search(r"'nonce-([\w-]+)'", policy["script-src"])
        assert nonce is not None and nonce[1] not in seen
        seen.add(nonce[1])
        assert answer.text.count("<script") == answer.text.count(f'<script nonce="{nonce[1]}"')
        assert int(answer.headers["content-length"]) == len(answer.content)


def test_every_answer_carries_the_headers(visit: Visit) -> None:
    client = visit()
    for path in ("/", "/slimscope/pulse", "/theme.css", "/nothing", "/gradio_api/upload"):
        headers = client.get(path).headers
        for name, value in middleware.HEADERS.items():
            assert headers[name] == value, (path, name)
    script = app.launch_options()["head"].removeprefix("<script>").removesuffix("</script>")
    assert middleware.hash_of(script) in visit().get("/").headers["content-security-policy"]


def test_a_space_is_framed_by_the_hub_and_its_visitors_are_guests(
    visit: Visit, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert visit().get("/slimscope/pulse").headers["x-frame-options"] == "SAMEORIGIN"
    monkeypatch.setenv("SPACE_HOST", SPACE)
    set_up(monkeypatch)
    here = settings()
    assert (here.host, here.names, here.shared) == ("0.0.0.0", (SPACE,), True)
    client = visit("10.0.0.7", host=SPACE, x_forwarded_for="8.8.8.8")
    answer = client.get("/slimscope/pulse")
    policy = answer.headers["content-security-policy"]
    assert answer.status_code == 200 and "x-frame-options" not in answer.headers
    assert f"frame-ancestors https://huggingface.co https://{SPACE}" in policy
    assert client.post(f"{API_PATH}/runs/sds-0003/cancel").status_code == 403
    assert visit(host="evil.example").get("/slimscope/pulse").status_code == 421
    assert auth.host_link(7860).startswith(f"https://{SPACE}/slimscope/host#")


@pytest.mark.parametrize("name", ["evil.example", "x.hf.space; script-src *", "a.b.hf.space"])
def test_another_name_is_no_space(visit: Visit, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("SPACE_HOST", name)
    set_up(monkeypatch)
    assert settings().host == "127.0.0.1" and settings().names == ()
    assert "frame-ancestors 'self'" in visit().get("/").headers["content-security-policy"]
