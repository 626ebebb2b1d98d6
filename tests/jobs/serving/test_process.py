"""The serving process: access, lifetime, and its state after a kill, a client that disconnects and
a client that never reads."""

import asyncio
import json
import os
import shutil
import signal
import socket
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, nullcontext, suppress
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load_file, save_file
from sqlalchemy import text

from backend.decoding.serving.engine import ServingEngine
from backend.decoding.serving.loop import SequencePass
from backend.errors import SlimscopeError
from backend.models.memory import is_out_of_memory, memory_available
from backend.models.sources.catalog import inspect
from backend.models.sources.spec import TOY_FOLDER
from backend.queue.launcher import SERVING
from backend.settings import settings
from backend.store.migrate import current_revision
from backend.store.session import writing
from jobs.serving import client, main, server
from jobs.serving.client import address_path, send_request, serving_status, socket_path
from tests.fork_server import FORKS, begin_anew
from tests.queue.conftest import HOST
from tests.waiting import until

PATIENCE_S = 60
PASS_S = 0.02  # of a slow answer
CHAT = "/v1/chat/completions"


def run_process(
    environment: dict[str, str],
    log: Path,
    slow: bool,
    unix: bool,
    is_child: bool,
    stuck: bool,
) -> None:
    """Run the forked process, or a child of it."""
    begin_anew(environment, log, log)
    if is_child and os.fork():
        signal.pause()
    quick = ServingEngine.step

    def slowly(engine: ServingEngine) -> list[SequencePass]:
        time.sleep(PASS_S)
        return quick(engine)

    if stuck:
        server.MAX_PASS_S = 0.5
        ServingEngine.step = lambda _: signal.pause() or []  # type: ignore[method-assign]
    if slow:
        ServingEngine.step = slowly  # type: ignore[method-assign]
    client.MAX_PATH = 10_000 if unix else 0
    main.main()


Start = Callable[..., ForkServerProcess]


@pytest.fixture
def start(queue: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Return a function that starts the process; a request starts it, too, if it does not run."""
    processes: list[ForkServerProcess] = []

    def once(
        idle: float = 60.0,
        slow: bool = False,
        unix: bool = True,
        is_child: bool = False,
        stuck: bool = False,
    ) -> ForkServerProcess:
        environment = {**os.environ, "SLIMSCOPE_IDLE_EXIT": str(idle / 10)}
        arguments = (environment, queue / "log.txt", slow, unix, is_child, stuck)
        processes.append(FORKS.Process(target=run_process, args=arguments))
        processes[-1].start()
        return processes[-1]

    def wake() -> None:
        if not SERVING.is_alive() and not any(process.is_alive() for process in processes):
            once()

    monkeypatch.setattr(SERVING, "wake", wake)
    yield once
    for process in processes:
        process.kill()
        process.join()


def body(**values: Any) -> bytes:
    said = [{"role": "user", "content": "One day"}]
    return json.dumps({"model": "toy", "messages": said, "temperature": 0, **values}).encode()


async def ask(**values: Any) -> tuple[int, Any]:
    async with send_request(CHAT, body(**values), HOST) as response:
        return response.status_code, json.loads(await response.aread())


def asked(**values: Any) -> tuple[int, Any]:
    return asyncio.run(ask(**values))


def request_counts() -> tuple[int, int, int]:
    """Return the number of requests of the process, and of running and waiting sequences of its
    engine."""
    if not (status := asyncio.run(serving_status())):
        return -1, -1, -1  # it has no time to say so
    engine = status["models"]["toy"]
    return status["requests"], engine["running"], engine["waiting"]


async def text_lines(response: httpx.Response) -> Any:
    """Return the lines of a stream once it has sent some text."""
    lines = response.aiter_lines()
    async for line in lines:
        if '"delta": {"content"' in line and '"content": ""' not in line:
            return lines
    raise AssertionError("Nothing was written.")


def streamed(meanwhile: Callable[[], object], **values: Any) -> list[str]:
    """Return the rest of a stream; `meanwhile` is called once it has sent some text."""

    async def read() -> list[str]:
        content = body(**{"max_tokens": 200, **values}, stream=True)
        async with send_request(CHAT, content, HOST) as response:
            lines = await text_lines(response)
            meanwhile()
            return [line async for line in lines]

    return asyncio.run(read())


@pytest.mark.parametrize("unix", [True, False])
def test_it_answers_only_its_user_and_ends_when_idle(start: Start, unix: bool) -> None:
    process = start(idle=0.5, unix=unix)
    status, found = asked(max_tokens=5)
    assert status == 200 and found["usage"]["completion_tokens"] == 5
    file = socket_path() if unix else address_path()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600 and socket_path().exists() == unix
    if not unix:
        about = json.loads(file.read_text())
        for token in ("", "Bearer wrong"):
            url = f"http://127.0.0.1:{about['port']}/status"
            assert httpx.get(url, headers={"authorization": token}).status_code == 401
    process.join(PATIENCE_S)
    assert process.exitcode == 0 and not SERVING.is_alive()
    assert asyncio.run(serving_status()) == {}


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_it_ends_with_its_parent(start: Start, end: signal.Signals) -> None:
    parent = start(is_child=True)
    assert asked(max_tokens=5)[0] == 200
    os.kill(parent.pid, end)
    until(lambda: not SERVING.is_alive())
    assert not socket_path().exists()


def test_a_second_process_ends_immediately(start: Start) -> None:
    start()
    asked(max_tokens=1)
    second = start()
    second.join(PATIENCE_S)
    assert second.exitcode == 0 and asked(max_tokens=1)[0] == 200


def test_a_kill_ends_the_stream_and_the_next_request_starts_another(start: Start) -> None:
    process = start(slow=True)
    with pytest.raises(httpx.TransportError):
        streamed(process.kill)
    process.join()
    assert asked(max_tokens=3)[1]["usage"]["completion_tokens"] == 3


def test_after_an_upgrade_it_finishes_its_answers_and_ends(start: Start) -> None:
    process, before = start(slow=True), current_revision()

    def of_version(number: str | None) -> None:
        with writing() as session:
            session.execute(text("UPDATE alembic_version SET version_num = :n"), {"n": number})

    async def upgraded() -> list[str]:
        asks = body(max_tokens=100, stream=True, lookup=True)
        async with send_request(CHAT, asks, HOST) as response:
            lines = await text_lines(response)
            of_version("9999")
            while socket_path().exists():
                await asyncio.sleep(PASS_S)
            with pytest.raises(SlimscopeError, match="restart the dashboard"):
                await ask()
            return [line async for line in lines]

    assert asyncio.run(upgraded())[-2] == "data: [DONE]"
    process.join(PATIENCE_S)
    assert process.exitcode == 0
    of_version(before)
    assert asked(max_tokens=3)[1]["usage"]["completion_tokens"] == 3


def test_a_live_state_is_restored_from_its_address(start: Start) -> None:
    """The process is killed in the middle of its stream."""
    process, shape = start(slow=True), inspect("toy")

    async def changed(state: str, killed: bool) -> list[dict[str, Any]]:
        asks = {"model": "toy", "state": state, "browser": "b", "want": ["loss"]}
        told = list[dict[str, Any]]()
        async with send_request("/live/answer", json.dumps(asks).encode(), HOST) as response:
            with suppress(httpx.TransportError):
                async for line in response.aiter_lines():
                    told += [json.loads(line[6:])] if line else []
                    if killed and told[-1]["event"] == "applied":
                        process.kill()
        return [each for each in told if each["event"] in ("applied", "loss", "done")]

    layers = f"0x{len(shape.linears)}_1x{len(shape.embeddings)}"
    state = f"~magnitude~rtn~2of4_dense~{layers}"
    asyncio.run(changed(state, True))
    process.join()
    after = asyncio.run(changed(state, False))
    assert after[0]["changed"] == len(shape.linears) and after[0]["exactly"]
    assert after[-2]["event"] == "loss" and after[-1] == {"event": "done"}


def test_a_process_that_does_not_start_is_reported(
    queue: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "START_S", 0.5)
    with pytest.raises(SlimscopeError, match="did not start"):
        asked()


def test_a_disconnected_client_frees_its_slot(start: Start) -> None:
    start(slow=True)

    async def leave(stream: bool) -> None:
        async with send_request(CHAT, body(max_tokens=200, stream=stream), HOST) as response:
            await text_lines(response)

    async def impatient() -> None:
        async with asyncio.timeout(0.3):
            await ask(max_tokens=200)

    asyncio.run(leave(True))
    with pytest.raises(TimeoutError):
        asyncio.run(impatient())
    until(lambda: request_counts() == (0, 0, 0))


def test_disconnecting_while_data_arrives_logs_no_error(queue: Path) -> None:
    """The socket becomes readable in the iteration of the event loop that cancels the read."""

    async def left() -> list[dict[str, Any]]:
        logged, loop = list[dict[str, Any]](), asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: logged.append(context))
        bound.listen()
        opening = asyncio.ensure_future(
            opened.enter_async_context(send_request(CHAT, body(), HOST))
        )
        process, _ = await loop.sock_accept(bound)
        with process:
            process.sendall(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
            reading = asyncio.ensure_future((await opening).aread())
            await asyncio.sleep(0.05)
            process.sendall(b"1\r\na\r\n")
            await asyncio.sleep(0)
            reading.cancel()
            await asyncio.wait([reading])
            await opened.aclose()
        assert reading.cancelled()
        return logged

    opened, (bound, _) = AsyncExitStack(), client.listen()
    with bound:
        bound.setblocking(False)
        assert asyncio.run(left()) == []


def test_the_status_of_a_hung_process_is_empty(
    queue: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "STATUS_S", 0.2)
    with client.listen()[0]:  # and never accepts
        assert asyncio.run(asyncio.wait_for(serving_status(), 20)) == {}


@pytest.fixture
def impatient(start: Start, monkeypatch: pytest.MonkeyPatch) -> ForkServerProcess:
    """Start the process with clients that soon notice that it hangs."""
    process = start(slow=True)
    assert asked(max_tokens=1)[0] == 200
    monkeypatch.setattr(client, "PING_S", 0.1)
    monkeypatch.setattr(client, "HUNG_S", 1.0)
    return process


def test_a_hung_process_is_restarted_and_its_streams_end(impatient: ForkServerProcess) -> None:
    with pytest.raises(httpx.TransportError):
        streamed(lambda: os.kill(impatient.pid, signal.SIGSTOP))
    impatient.join(PATIENCE_S)
    assert impatient.exitcode == -signal.SIGKILL
    until(SERVING.is_alive)  # before anybody asks again
    assert asked(max_tokens=3)[1]["usage"]["completion_tokens"] == 3


def test_a_request_to_a_hung_process_ends_with_the_reason(impatient: ForkServerProcess) -> None:
    os.kill(impatient.pid, signal.SIGSTOP)
    with pytest.raises(SlimscopeError, match=r"hung for 1 s\. It is restarted\. Ask again"):
        asked(max_tokens=3)
    assert asked(max_tokens=3)[0] == 200


def test_an_endless_forward_pass_ends_the_process(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = start(stuck=True)
    with pytest.raises(SlimscopeError, match="It is restarted"):
        asked(max_tokens=3)
    process.join(PATIENCE_S)
    assert process.exitcode == -signal.SIGKILL and asked(max_tokens=3)[0] == 200


def allocate_the_rest() -> None:
    room = memory_available()
    server.limit_memory()
    torch.empty(int(0.3 * room), dtype=torch.uint8)  # which touches none of it
    with pytest.raises(RuntimeError) as refused:
        torch.empty(int(0.99 * room), dtype=torch.uint8)
    assert is_out_of_memory(refused.value)
    torch.empty(2**20)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the limit covers other memory")
def test_it_leaves_memory_free() -> None:
    process = FORKS.Process(target=allocate_the_rest)
    process.start()
    process.join()
    assert process.exitcode == 0


def test_two_hundred_clients_that_never_read_block_nobody(start: Start) -> None:
    start()
    asked(max_tokens=1)
    content = body(max_tokens=60, stream=True)
    head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(content)}\r\n\r\n".encode()
    with ExitStack() as silent:
        for _ in range(200):
            client_socket = silent.enter_context(socket.socket(socket.AF_UNIX))
            client_socket.connect(str(socket_path()))
            client_socket.sendall(head + content)
        assert asked(max_tokens=20)[0] == 200
    until(lambda: request_counts() == (0, 0, 0))


def damage(weights: Path) -> None:
    os.truncate(weights, 5000)


def exchange(weights: Path) -> None:
    turned = {name: x.flip(0) for name, x in load_file(weights).items()}
    save_file(turned, weights.with_name("new"), {"format": "pt"})
    weights.with_name("new").rename(weights)


@pytest.mark.parametrize("change", [lambda x: shutil.rmtree(x.parent), damage, exchange])
def test_a_model_that_changes_while_it_answers_is_reloaded(
    start: Start, change: Callable[[Path], None]
) -> None:
    """Damage may end the process if the file is mapped into memory."""
    folder = settings().root / "models" / "mine"
    shutil.copytree(TOY_FOLDER, folder)
    start(slow=True)

    with suppress(httpx.TransportError) if change is damage else nullcontext():
        lines = streamed(
            lambda: change(folder / "model.safetensors"), model=str(folder), max_tokens=40
        )
        assert lines[-2] == "data: [DONE]"
    status, found = asked(model=str(folder), max_tokens=20)
    toy = asked(max_tokens=20)[1]["choices"][0]["message"]
    if change is exchange:
        assert status == 200 and found["choices"][0]["message"] != toy
    else:
        assert status >= 400 and (folder.exists() or found["error"]["param"] == "model")


def test_choices_with_seeds_and_prompts_beyond_the_context(start: Start) -> None:
    start()
    status, found = asked(max_tokens=10_000)
    assert status == 400 and "context of Toy" in found["error"]["message"]
    assert asyncio.run(serving_status()) == {"requests": 0, "models": {}}  # nothing was loaded
    _, two = asked(n=2, seed=5, temperature=0.9, max_tokens=12)
    _, other = asked(seed=6, temperature=0.9, max_tokens=12)
    texts = [choice["message"]["content"] for choice in two["choices"]]
    assert texts[0] != texts[1] == other["choices"][0]["message"]["content"]
    until(lambda: request_counts() == (0, 0, 0))
