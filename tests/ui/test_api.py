"""The JSON API of the real dashboard: the same figures, rules and words as everywhere else."""

import json
import math
import re
import sqlite3
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import event

from backend.queue.artifacts import run_folder
from backend.settings import settings
from backend.store import frames, queries
from backend.store.session import engine_for, writing
from backend.store.tables import Artifact, Job, Result
from jobs.kind import kinds
from jobs.operations.registry import OPERATIONS
from jobs.record import record, tensors
from jobs.submit import validate_config
from tests.ui.visits import OTHER, TOKEN, Visit, blocks, shared, visit, web
from ui import api
from ui.api_errors import API_PATH as API

__all__ = ["blocks", "shared", "visit", "web"]

DOCS = Path(__file__).parents[2] / "docs" / "api.md"
HOST = {"authorization": f"Bearer {TOKEN}"}


def test_runs_are_listed_as_the_command_line_lists_them(visit: Visit) -> None:
    client = visit()
    found = client.get(f"{API}/runs").json()
    assert [run["id"] for run in found] == [job.run for job in queries.jobs()]
    assert [run["id"] for run in client.get(f"{API}/runs?state=queued").json()] == ["sds-0003"]
    assert len(client.get(f"{API}/runs?limit=2").json()) == 2
    assert client.get(f"{API}/runs?kind=none").json() == []


def test_a_run_is_told_whole(visit: Visit) -> None:
    client = visit()
    told = client.get(f"{API}/runs/sds-0001").json()
    assert told == json.loads(json.dumps(record("sds-0001")))
    assert client.get(f"{API}/runs/sds-0001/results").json() == told["results"] != []
    assert client.get(f"{API}/runs/sds-0001/results?of=tensors").json() == tensors("sds-0001") != []
    points = client.get(f"{API}/runs/sds-0002/results?of=curves").json()
    stored = frames.curves("sds-0002")
    assert [(p["family"], p["stage"], p["axis"]) for p in points] == [
        *zip(stored["family"], stored["stage"], stored["axis"], strict=True)
    ]
    assert all(map(math.isclose, [p["value"] for p in points], stored["value"]))


def test_a_run_is_added_with_the_config_of_its_kind(visit: Visit) -> None:
    client, config = visit(), {"model": "toy", "segments": 2, "pattern": "50%"}
    answer = client.post(f"{API}/submit/sds?name=by%20program&priority=3", json=config)
    assert answer.status_code == 201
    job = queries.job(answer.json()["id"])
    assert job.config == validate_config("sds", config).model_dump(mode="json")
    assert (job.name, job.priority, job.owner) == ("by program", 3, "local")
    assert answer.json()["place"] == 1  # its priority is higher
    preset = next(iter(kinds()["sds"].presets))
    answer = client.post(f"{API}/submit/sds?preset={preset}", json={"model": "toy"})
    assert answer.status_code == 201
    stored = queries.job(answer.json()["id"]).config
    assert {**kinds()["sds"].presets[preset], "model": "toy"}.items() <= stored.items()


def test_a_run_is_cancelled_and_resumed(visit: Visit) -> None:
    client = visit()
    assert client.post(f"{API}/runs/sds-0003/cancel").json()["state"] == "cancelled"
    assert client.post(f"{API}/runs/sds-0003/resume").json()["state"] == "queued"
    running = client.post(f"{API}/runs/sds-0002/cancel").json()
    assert (running["state"], running["desired"]) == ("running", "stop")


def test_a_sweep_is_added_and_read_and_a_run_repeated(visit: Visit) -> None:
    client = visit()
    body = {"config": {"model": "toy", "pattern": "50%"}, "sweep": {"seed": "0..1"}}
    made = client.post(f"{API}/sweeps/sds?name=pair", json=body).json()
    assert [run["config"]["seed"] for run in made] == [0, 1]
    found = client.get(f"{API}/runs/{made[1]['id']}?sweep=true").json()
    assert [run["id"] for run in found["runs"]] == [run["id"] for run in made]
    again = client.post(f"{API}/runs/sds-0001/reproduce").json()
    assert again["state"] == "queued" and again["parent"] == 1
    alone = client.get(f"{API}/runs/sds-0001?sweep=true")
    assert alone.status_code == 422 and "not part of a sweep" in alone.json()["what"]


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "told"),
    [
        ("GET", "runs/sds-0099", None, 404, {"what": "There is no run sds-0099."}),
        ("GET", "runs/<script>", None, 404, {"do": "Run ids look like sds-0042."}),
        ("GET", "runs/sds-0099/results", None, 404, {}),
        ("POST", "runs/sds-0003/resume", None, 409, {"why": "It is queued."}),
        ("POST", "runs/sds-0099/cancel", None, 404, {}),
        ("POST", "runs/sds-0001/next", None, 409, {"what": "sds-0001 is not queued."}),
        ("POST", "submit/sds", {"segments": 0}, 422, {"field": "segments", "others": []}),
        ("POST", "submit/sds", {"nothing": 1}, 422, {"field": "nothing"}),
        ("POST", "submit/sds", {"model": "/etc"}, 422, {"field": "model"}),
        ("POST", "submit/sds", {"pattern": "9:4", "model": "toy"}, 422, {"field": "pattern"}),
        ("POST", "submit/sds", [1], 422, {"field": "body"}),
        ("POST", "submit/sds?preset=none", {}, 422, {"what": "There is no preset 'none'."}),
        ("POST", "submit/sds?priority=x", {}, 422, {"field": "priority"}),
        ("POST", "submit/none", {}, 404, {}),
        ("GET", "runs?state=happy", None, 422, {"field": "state"}),
        ("GET", "runs?limit=0", None, 422, {"field": "limit"}),
        ("GET", "nothing", None, 404, {"do": f"{API}/openapi.json lists all requests."}),
        ("DELETE", "runs/sds-0001", None, 405, {}),
    ],
)
def test_errors_say_what_why_and_what_to_do(
    web: Any, visit: Visit, method: str, path: str, body: Any, status: int, told: dict[str, str]
) -> None:
    before = len(queries.jobs())
    answer: httpx.Response = visit().request(method, f"{API}/{path}", json=body)
    assert answer.status_code == status
    assert set(answer.json()) == {"what", "why", "do", "field", "others"}
    assert told.items() <= answer.json().items()
    assert len(queries.jobs()) == before


@pytest.mark.parametrize(
    ("said", "do"),
    [
        ("database is locked", "Try again in a minute"),
        ("database or disk is full", "Free some space"),
        ("database disk image is malformed", "See the log of the dashboard"),
    ],
)
def test_a_database_that_does_not_answer_is_told(visit: Visit, said: str, do: str) -> None:
    def fails(*_: object) -> None:
        raise sqlite3.OperationalError(said)

    client = visit()
    listen = (engine_for(settings().url), "before_cursor_execute")
    event.listen(*listen, fails)
    try:
        answers = [client.get(f"{API}/runs"), client.post(f"{API}/runs/sds-0003/cancel")]
    finally:
        event.remove(*listen, fails)
    for answer in answers:
        assert answer.status_code == 503
        assert answer.json()["what"] == "The database could not be used."
        assert answer.json()["why"] == f"{said}." and answer.json()["do"].startswith(do)
    assert queries.job("sds-0003").state == "queued"


def test_a_guest_reads_and_a_host_changes(shared: Visit) -> None:
    guest, host = shared(OTHER), shared(OTHER, **HOST)
    for path in ("kinds", "runs", "runs/sds-0001", "runs/sds-0001/results"):
        assert guest.get(f"{API}/{path}").json() == host.get(f"{API}/{path}").json()
    refused = guest.post(f"{API}/runs/sds-0003/cancel")
    assert refused.status_code == 403
    assert refused.json() == {
        "what": "guest may not cancel this run.",
        "why": "Guests have read-only access.",
        "do": "Ask the person who started Slimscope.",
        "field": None,
        "others": [],
    }
    assert guest.post(f"{API}/runs/sds-0003/next").status_code == 403
    assert host.post(f"{API}/runs/sds-0003/cancel").status_code == 200
    assert queries.job("sds-0003").state == "cancelled"
    assert queries.events("sds-0003")[-1].actor == "host"


def test_a_host_downloads_what_a_run_left_and_nothing_else(shared: Visit) -> None:
    guest, host = shared(OTHER), shared(OTHER, **HOST)
    folder = run_folder("sds-0001") / "model"
    folder.mkdir(parents=True)
    (folder / "notes.html").write_text("<script>1</script>")
    row = {"job_id": 1, "kind": "model", "path": "sds-0001/model", "bytes": 1, "created_at": 1}
    with writing() as session:
        session.add(Artifact(**row))
    where = f"{API}/runs/sds-0001/file?path=sds-0001/model"
    given = host.get(f"{where}/notes.html")
    assert given.text == "<script>1</script>"
    assert given.headers["content-type"] == "application/octet-stream"
    assert given.headers["content-disposition"].startswith("attachment")
    assert guest.get(f"{where}/notes.html").status_code == 403
    assert host.get(f"{where}/../../results.db").status_code == 404
    assert host.get(f"{API}/runs/sds-0002/file?path=sds-0001/model/notes.html").status_code == 404


def test_openapi_describes_every_request_and_every_config(visit: Visit) -> None:
    described = visit().get(f"{API}/openapi.json").json()
    assert described["openapi"].startswith("3.")
    for kind in kinds().values():
        operation = described["paths"][f"/submit/{kind.name}"]["post"]
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        assert set(schema["properties"]) == set(kind.config.model_fields)
        assert "$ref" not in json.dumps(schema)
    paths = {each.path for each in OPERATIONS.values() if each.path}
    assert paths - {api.SUBMIT} < set(described["paths"])
    for operation in (each for path in described["paths"].values() for each in path.values()):
        for status in ("403", "404", "409", "422"):
            body = operation["responses"][status]["content"]["application/json"]["schema"]
            assert body["$ref"].endswith("/ErrorBody")
    error = described["components"]["schemas"]["ErrorBody"]
    assert set(error["properties"]) == {"what", "why", "do", "field", "others"}
    assert "HTTPValidationError" not in described["components"]["schemas"]
    assert [kind["name"] for kind in visit().get(f"{API}/kinds").json()] == [*kinds()]


def test_the_page_about_it_lists_them_all_and_loads_but_our_typefaces(visit: Visit) -> None:
    page = visit().get("/slimscope/docs").text
    for path in {each.path for each in OPERATIONS.values()} - {api.SUBMIT} | {"/submit/sds"}:
        assert path in page
    alone = re.sub(r'src: url\("\.\./static/fonts/[\w/-]+\.woff2"\)', "", page)
    for word in ("src=", "//", "<link", "@import", "url("):
        assert word not in alone.removeprefix("<!doctype html>")
    assert "calibration_text" in page


def test_the_client_in_the_docs_works(
    visit: Visit, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = re.findall(r"```python\n(import time.*?)```", DOCS.read_text(), re.DOTALL)
    client = visit()

    def connect(base_url: str, headers: dict[str, str]) -> httpx.Client:
        client.base_url = base_url
        return client

    def finish(_: float) -> None:
        with writing() as session:
            newest = session.get_one(Job, queries.jobs()[0].id)
            newest.state = "succeeded"
            session.merge(Result(job_id=newest.id, stage="sds", family="perplexity", value=12.5))

    monkeypatch.setattr(httpx, "Client", connect)
    monkeypatch.setattr(time, "sleep", finish)
    exec(compile(code, str(DOCS), "exec"), {})
    said = capsys.readouterr().out
    assert "succeeded" in said and "perplexity" in said and "12.5" in said


def test_the_documentation_names_every_request() -> None:
    text = DOCS.read_text()
    for operation in (each for each in OPERATIONS.values() if each.path):
        method, names = "POST" if operation.writes else "GET", operation.parameters.keys()
        line = next(
            line
            for line in text.splitlines()
            if re.search(rf"`{method} {re.escape(operation.path)}[?`]", line)
        )
        asked = re.search(rf"{re.escape(operation.path)}(\?[\w=&]*)?`", line)
        told = {*re.findall(r"(\w+)=", asked[1] or "")} if asked else set()
        elsewhere = {"runs", "config", "sweep", "pipeline", *re.findall(r"{(\w+)}", operation.path)}
        assert told - {"sweep"} == names - elsewhere, line


def test_a_pipeline_is_added(visit: Visit) -> None:
    client = visit()
    body = {"model": "toy", "steps": [{"sds": {"pattern": "2:4"}}, {"dlqat": {"bits": 4}}]}
    pruned, quantized = client.post(f"{API}/pipelines", json={**body, "name": "prune 🪚"}).json()
    assert quantized["config"]["model"] == pruned["id"] and pruned["name"] == "prune 🪚"
    wrong = client.post(f"{API}/pipelines", json={**body, "steps": [{"sds": {"bits": 4}}]})
    assert wrong.status_code == 422 and "Step 1 (sds)" in wrong.json()["what"]


def test_models_texts_logs_and_artifacts_are_listed(visit: Visit) -> None:
    client = visit()
    assert "toy" in {each["name"] for each in client.get(f"{API}/models").json()}
    assert "toystories" in {each["name"] for each in client.get(f"{API}/texts").json()}
    log = client.get(f"{API}/runs/sds-0001/log?after=0").json()
    assert set(log) == {"attempt", "text", "start", "end", "state"}
    assert all("files" in each for each in client.get(f"{API}/runs/sds-0001").json()["artifacts"])
    assert client.get(f"{API}/runs/sds-0099/log").status_code == 404
