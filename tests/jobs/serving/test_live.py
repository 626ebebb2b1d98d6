"""Live models through the routes of the process: events, refusals, visitors, and equality with the
models that runs build from the same state."""

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from starlette.applications import Starlette
from torch import Tensor

from backend.errors import ConfigError, ForbiddenError
from backend.live.address import WORKBENCH
from backend.models.sources.catalog import inspect
from backend.queue.actor import Actor
from backend.queue.artifacts import run_folder
from backend.settings import settings
from backend.store import queries
from backend.store.tables import Job
from jobs.fields.models import resolve_model
from jobs.operations.registry import OPERATIONS
from jobs.serving.client import PERSON_HEADER, ROLE_HEADER
from jobs.serving.live import answering, models
from jobs.serving.live.models import LivePool, OpenedModel
from jobs.serving.live.routes import LiveRoutes
from tests.conftest import Given
from tests.decoding.native.test_decoder import forget_library
from tests.queue.conftest import Wait, succeeded

FACTS = inspect("toy")
N, OUTSIDE = len(FACTS.linears), len(FACTS.embeddings)
TIMES = f"x{OUTSIDE}" if OUTSIDE > 1 else ""
FIRST = FACTS.linears[0].name
LAST = ("done", "cancelled", "error")
TEXT = "Once upon a time there was a dog."


def address(
    form: str, pruner: str = "magnitude", quantizer: str = "rtn", rest: str = "dense"
) -> str:
    return f"~{pruner}~{quantizer}~{form}_{rest}~0x{N}_1{TIMES}"


class LiveClient:
    """HTTP client of the routes of a pool, without a network."""

    def __init__(self, budget: int | None = None) -> None:
        self.pool = LivePool(lambda: 1, budget)
        routes = LiveRoutes(self.pool, nullcontext).routes
        self.transport = httpx.ASGITransport(Starlette(routes=routes))

    async def posted(
        self, path: str, person: str = "mira", role: str = "host", **body: Any
    ) -> httpx.Response:
        content = json.dumps({"model": "toy", "browser": "b", **body})
        headers = {PERSON_HEADER: person, ROLE_HEADER: role}
        async with httpx.AsyncClient(
            transport=self.transport, base_url="http://x", timeout=60
        ) as sender:
            return await sender.post(f"/live/{path}", content=content, headers=headers)

    async def events(self, state: str, *want: str, **more: Any) -> list[dict[str, Any]]:
        answer = await self.posted("answer", state=state, want=want, **more)
        assert answer.status_code == 200, answer.text
        return [json.loads(line[6:]) for line in answer.text.splitlines() if line]

    def post(self, path: str, **body: Any) -> httpx.Response:
        return asyncio.run(self.posted(path, **body))

    def ask(self, state: str, *want: str, **more: Any) -> list[dict[str, Any]]:
        return asyncio.run(self.events(state, *want, **more))


@pytest.fixture(scope="module")
def live_client() -> LiveClient:
    return LiveClient()


def of(events: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [each for each in events if each["event"] == name]


def test_a_state_is_built_measured_and_kept_by_its_address(live_client: LiveClient) -> None:
    events = live_client.ask(address("50p"), "loss", "text", "speed", prompt="One day", tokens=9)
    told = [each["event"] for each in events if each["event"] != "waits"]
    assert told[:2] == ["opened", "text"] and told[-1] == "done"  # of the dense model
    assert told.index("applied") < told.index("loss")
    assert told.index("loss") < len(told) - told[::-1].index("text")  # between words
    (opened,), (applied,) = of(events, "opened"), of(events, "applied")
    assert applied["exactly"] and applied["changed"] == N
    losses = of(events, "loss")
    assert [x["tokens"] for x in losses] == [256, 512, 1024, 1280] and losses[-1]["of"] == 1280
    assert {x["context"] for x in losses} == {256}  # windows of a run, as in its final figure
    assert losses[-1]["low"] < losses[-1]["ratio"] < losses[-1]["high"] and losses[-1]["kl"] > 0
    texts = {
        s: "".join(x["delta"] for x in of(events, "text") if x["side"] == s)
        for s in ("live", "dense")
    }
    assert texts["live"] and texts["dense"] and of(events, "speed")[0]["tokens_per_s"] > 0
    whole = f"{opened['identity']}{address('50p')}"
    again = live_client.ask(whole, "loss", "text", prompt="One day", tokens=9)
    assert of(again, "applied")[0]["changed"] == 0 and of(again, "loss") == losses
    assert of(again, "text")[0] == {
        "event": "text",
        "side": "dense",
        "delta": texts["dense"],
        "done": False,
    }
    dense = live_client.ask(address("dense"), "loss")
    assert of(dense, "loss")[-1]["ratio"] == 1.0 and of(dense, "loss")[-1]["kl"] == 0


def test_a_part_of_a_long_window_is_measured_first(
    live_client: LiveClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = of(live_client.ask(address("60p"), "loss"), "loss")
    monkeypatch.setattr(answering, "FIRST_LOSS_TOKENS", 128)
    first, *rest = of(live_client.ask(address("60p"), "loss"), "loss")
    assert (first["tokens"], first["context"], first["of"]) == (128, 128, 1280)
    assert first["loss"] != whole[0]["loss"] and first["low"] is None
    assert rest == whole


def test_a_trace_covers_every_block(live_client: LiveClient) -> None:
    events = live_client.ask(address("2of4"), "why", text="One day a girl went to the park.")
    (told,) = of(events, "tokens")
    tokens = told["tokens"]
    assert "".join(tokens).endswith("park.") and told["blocks"] == FACTS.blocks
    found = of(events, "why")
    assert [x["block"] for x in found] == [*range(FACTS.blocks)]
    assert all(len(x["losses"]) == len(tokens) - 1 for x in found)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"state": address("50p").replace("~", "123456789abc~", 1)}, "another version"),
        ({"state": address("0p")}, "between 0 and 100"),
        ({"state": address("100p")}, "0 and 100"),
        ({"state": address("int1-g64")}, "2 to 8"),
        ({"state": address("int4-g7")}, "divide"),
        ({"state": address("int4-g32", rest="50p")}, "not pruned"),
        ({"state": address("50p", pruner="x")}, "does not exist"),
        ({"state": ""}, "not an address"),
        ({"state": f"~wanda~rtn~dense~0x{N}"}, "layers do not match"),
        ({"model": "toy2", "state": address("50p")}, "not a model"),
        ({"state": address("50p"), "want": ["text"]}, "prompt is empty"),
        ({"state": address("50p"), "want": ["text"], "prompt": "a " * 2000}, "context"),
        ({"state": address("50p"), "want": ["why"], "text": "a " * 400}, "2 to 128"),
        ({"state": address("50p"), "want": ["why"]}, "2 to 128"),
        ({"state": address("50p", quantizer="awq"), "want": ["refine"]}, "done"),
        ({"state": address("int4-g32", quantizer="awq"), "want": ["refine"]}, "runs only"),
    ],
)
def test_impossible_requests_end_with_an_error(
    live_client: LiveClient, body: dict[str, Any], words: str
) -> None:
    rest = {name: value for name, value in body.items() if name not in ("state", "want")}
    events = live_client.ask(body["state"], *body.get("want", ()), **rest)
    assert [each["event"] for each in events if each["event"] in LAST] == [events[-1]["event"]]
    assert words in " ".join(map(str, events[-1].values()))


@pytest.mark.parametrize(
    "body",
    [
        {"state": 5},
        {"browser": ""},
        {"browser": "x" * 41},
        {"browser": "a b"},
        {"tokens": 0},
        {"tokens": 257},
        {"want": ["all"]},
        {"want": "loss"},
        {"strange": 1},
        {"prompt": "x" * 20_001},
        {"state": "x" * 20_001},
        {"model": ""},
    ],
)
def test_bad_bodies_are_refused_with_their_field(
    live_client: LiveClient, body: dict[str, Any]
) -> None:
    refused = live_client.post("answer", **{"state": address("50p"), **body})
    assert refused.status_code == 400 and refused.json()["field"] == next(iter(body))
    assert live_client.post("answer").json()["field"] == "state"


def test_a_histogram_is_available_for_any_state(live_client: LiveClient) -> None:
    live_client.ask(address("2of4"))
    for state, made in ((address("2of4"), "refined"), (address("2of4", "wanda"), "instant")):
        found = live_client.post("tensor", state=state, name=FIRST).json()
        n, zeros, below, above = found["tails"]
        assert found["made"] == made and sum(found["counts"]) + zeros + below + above == n
        assert zeros == n / 2
    for name, state, words in (
        ("x", address("2of4"), "not a layer"),
        (FIRST, "x", "not an address"),
    ):
        refused = live_client.post("tensor", state=state, name=name)
        assert refused.status_code == 400 and words in refused.text


def test_a_newer_request_cancels_the_older_one(
    live_client: LiveClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests of other browsers and of other people continue."""
    step, began = live_client.pool.before_step, threading.Event()

    def slow(*given: Any) -> None:
        began.set()
        time.sleep(0.02)
        step(*given)

    async def both(browser: str, person: str) -> tuple[str, str]:
        began.clear()
        first = asyncio.create_task(
            live_client.events(address("33p"), "loss", "text", prompt="One")
        )
        await asyncio.to_thread(began.wait, 60)
        second = await live_client.events(address("44p"), browser=browser, person=person)
        return (await first)[-1]["event"], second[-1]["event"]

    monkeypatch.setattr(live_client.pool, "before_step", slow)
    assert asyncio.run(both("b", "mira")) == ("cancelled", "done")
    assert asyncio.run(both("c", "mira")) == asyncio.run(both("b", "max")) == ("done", "done")


def test_a_guest_waits_for_hosts_for_a_limited_time(
    live_client: LiveClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "GUEST_WAITS_S", 0.02)
    with live_client.pool.active_request(guest=False):
        events = live_client.ask(address("20p"), "loss", role="guest", person="guest-1")
    assert any("host" in each["what"] for each in of(events, "waits"))
    assert events[-1]["event"] == "done"


@pytest.fixture
def no_decoder(monkeypatch: pytest.MonkeyPatch, given: Given) -> Iterator[None]:
    """Disable the native decoder, as if it could not be compiled."""
    given(NATIVE="false")
    forget_library()
    yield
    monkeypatch.undo()
    settings.cache_clear()
    forget_library()


def test_without_a_compiler_pytorch_is_used(no_decoder: None) -> None:
    events = LiveClient().ask(address("50p"), "loss", "text", prompt="One day", tokens=4)
    (opened,), (applied,) = of(events, "opened"), of(events, "applied")
    assert "PyTorch" in opened["decoder"] and applied["read_bytes"] is None
    assert 1 < of(events, "loss")[-1]["ratio"] < 1.1 and of(events, "text")


def test_inputs_are_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Damaged energies are measured again."""
    kept = tmp_path / "live" / "energies"
    monkeypatch.setattr(OpenedModel, "_energies_file", kept)

    def asked() -> tuple[bool, float]:
        events = LiveClient().ask(address("2of4", "wanda"), "loss")
        found = [x for x in of(events, "waits") if "inputs" in x["what"]]
        if found:
            said = [f"Measuring the inputs of blocks: {n} of 3" for n in (1, 2, 3)]
            assert [x["what"] for x in found] == said
            assert found[0]["about_s"] > found[-1]["about_s"] == 0
        return bool(found), of(events, "loss")[-1]["loss"]

    first = asked()
    assert first[0] and asked() == (False, first[1])
    kept.write_bytes(b"x")
    assert asked() == first and asked()[0] is False


def test_dropped_states_are_rebuilt(live_client: LiveClient) -> None:
    small = LiveClient(budget=1)
    (before,) = of(small.ask(address("40p"), "loss"), "loss")[-1:]
    small.ask(address("50p"), browser="other")
    (opened,) = small.pool._opened.values()
    assert opened.states["mira", "b"].live.nbytes == 0
    assert of(small.ask(address("40p"), "loss"), "loss")[-1] == before


def weights_of(folder: Path) -> dict[str, Tensor]:
    return {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}


@pytest.mark.parametrize(
    ("state", "format"),
    [
        (address("2of4", "sparsegpt"), "dense"),
        (address("int4-g32", "wanda", "gptq"), "compressed-tensors"),
    ],
)
def test_a_run_of_the_plan_produces_the_same_weights(
    queue: Path, wait: Wait, state: str, format: str
) -> None:
    live_client = LiveClient()
    assert of(live_client.ask(state, "refine"), "applied")[-1]["exactly"]
    (step,) = plan(state, "one-shot")
    job = succeeded(wait, step["kind"], step["config"])
    answer = live_client.post("export", state=state, format=format, name="mine")
    assert answer.status_code == 200
    live, run = weights_of(Path(answer.json()["folder"])), weights_of(run_folder(job.run) / "model")
    assert live.keys() == run.keys() and all(torch.equal(live[k], run[k]) for k in run)
    if format == "dense":  # a run is traced as the state it was made of
        traced, of_run = (
            live_client.ask(state, "why", text=TEXT),
            live_client.ask("", text=TEXT, against=job.run),
        )
        assert of(traced, "why") == of(of_run, "why") and of(traced, "tokens")


@pytest.mark.parametrize(
    ("form", "rest", "format", "found"),
    [
        ("50p", "dense", "compressed-tensors", ""),
        ("2of4andint3-g32", "int8-g32", "slimscope", "3 bits, model.embed_tokens 8"),
        ("int4-g32", "int8-g32", "gguf", None),
    ],
)
def test_exports_contain_the_current_state(
    queue: Path, live_client: LiveClient, form: str, rest: str, format: str, found: str | None
) -> None:
    answer = live_client.post("export", state=address(form, rest=rest), format=format, name="mine")
    assert answer.status_code == 200, answer.text
    written = answer.json()
    card = Path(written["folder"], written["card"]).read_text()
    assert address(form, rest=rest) in card and "No run has made" in card
    if found is None:
        (file,) = (x["name"] for x in written["files"] if x["name"].endswith(".gguf"))
        assert resolve_model(f"{written['folder']}/{file}").facts.blocks == FACTS.blocks
    else:
        packed = resolve_model(written["folder"]).facts.quantized
        assert found in packed and bool(found) == bool(packed)
    again = live_client.post("export", state=address(form), format=format, name="mine")
    assert again.status_code == 409 and "mine" in again.text


@pytest.mark.parametrize("name", ["", "../x", ".hidden", "a/b", "x" * 81, "a b"])
def test_export_names_cannot_leave_their_folder(live_client: LiveClient, name: str) -> None:
    refused = live_client.post("export", state=address("50p"), name=name)
    assert refused.status_code == 400 and refused.json()["field"] == "name"


def test_unsupported_formats_are_refused_and_leave_no_files(
    queue: Path, live_client: LiveClient
) -> None:
    state = address("int3-g32", rest="int8-g32")
    refused = live_client.post("export", state=state, format="compressed-tensors", name="mine")
    assert refused.status_code == 400 and "slimscope" in refused.json()["do"]
    assert not [*(queue / "models").iterdir()]


def plan(state: str, effort: str = "full") -> list[dict[str, Any]]:
    return OPERATIONS["plan-state"].function(model="toy", state=state, effort=effort)


def test_a_state_is_converted_to_configs(queue: Path) -> None:
    (sds,) = plan(address("60p", "wanda"))
    config = {"model": "toy", "pattern": "60%", "base": "wanda"}
    assert (sds["kind"], sds["config"]) == ("sds", config)
    (gptq,) = plan(address("int4-g32", "wanda", "gptq"), "one-shot")
    few = {"bits": 4, "group_size": 32, "stages": "gptq", "embedding": "dense"}
    assert gptq["config"] == {"model": "toy", **few}
    first, second = plan(address("2of4andint4-g32", "wanda", "rtn", "int8-g32"))
    assert first["kind"] == "sds" and second["config"]["keep_zeros"]
    assert (second["config"]["embedding"], second["config"]["format"]) == ("8", "slimscope")
    (step,) = plan(f"~wanda~rtn~50p_2of4_dense~0x{N - 2}_1_2x{1 + OUTSIDE}")
    one, two = (f"{x.block}.{x.module}" for x in FACTS.linears[-2:])
    assert step["config"]["overrides"] == f"{one}=2:4" and step["config"]["exclude"] == two
    for state, words in (
        (address("dense"), "nothing to run"),
        ("x", "not an address"),
        (address("int4-g32", rest="int3-g32"), "embedding"),
    ):
        with pytest.raises(Exception, match=words):
            plan(state)


def test_a_queued_state_records_its_measurements(queue: Path) -> None:
    queue_state, host = OPERATIONS["queue-state"], Actor("mira", "host")
    known = {"predicted": 1.25, "live": 1.5, "low": 1.4, "high": 1.6}
    known |= {"tokens": 2048, "context": 256, "preview": True}

    def queued(state: str, **other: Any) -> list[Job]:
        fields = {"model": "toy", "state": state, "effort": "one-shot"}
        made = queue_state.call(host, **fields | known | other)
        return [queries.job(each["id"]) for each in made]

    (alone,) = queued(pruned := address("50p"))
    assert alone.config["until"] == "first" and alone.environment[WORKBENCH] == {
        "model": "toy",
        "state": pruned,
        "profile": "",  # none was made
        **known,
    }
    sds, dlqat = queued(both := address("50pandint4-g32"))
    assert WORKBENCH not in sds.environment and dlqat.config["model"] == sds.run
    assert dlqat.environment[WORKBENCH]["state"] == both and dlqat.config["keep_zeros"]
    for strange in ("x", address("dense"), "<img>" + address("50p")):
        with pytest.raises(ConfigError):
            queued(strange)
    for field, value in (
        ("low", -1.0),
        ("high", "<b>"),
        ("high", float("inf")),
        ("context", -1),
        ("context", 10**9),
        ("preview", "<b>"),
        ("profile", "profile-0001"),
    ):
        with pytest.raises((ConfigError, ValidationError, TypeError)):
            queued(pruned, **{field: value})
    with pytest.raises(ForbiddenError):  # a pipeline is for hosts
        queue_state.call(Actor("guest-1", "guest"), model="toy", state=both)
    assert len(queries.jobs()) == 3


@pytest.mark.parametrize("against", ["nowhere/none", "sds-9999", "<b>"])
def test_impossible_comparisons_end_with_an_error(
    queue: Path, live_client: LiveClient, against: str
) -> None:
    (*_, last) = live_client.ask("", text=TEXT, against=against)
    assert last["event"] == "error" and against in last["what"] + last["why"]


def test_a_stalled_request_ends_with_an_error(
    live_client: LiveClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    live_client.ask(address("50p"))
    monkeypatch.setattr(answering, "PULSE_S", 0.05)
    monkeypatch.setattr(answering, "SILENT_S", 0.2)
    (opened,) = live_client.pool._opened.values()

    async def asked() -> list[dict[str, Any]]:
        with opened.dense.lock:  # somebody else computes, and does not end
            events = await live_client.events(address("60p"), "loss")
        while any(thread.name == "mira" for thread in threading.enumerate()):
            await asyncio.sleep(0.01)
        return events

    *waits, last = asyncio.run(asked())
    assert "still working" in of(waits, "waits")[-1]["what"]
    assert last["event"] == "error" and "takes too long" in last["what"]
