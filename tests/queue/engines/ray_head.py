"""A small HTTP server that answers as the head of a Ray cluster does. Its answers were recorded
from a head of Ray 2.60.0 with two machines, of which one was killed."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "a-token-of-the-cluster"
HEAD, FIRST, SECOND = "2d531988bdd77022", "c7ee2ffad2c1ad30", "e1a69898ead0307c"
DIED = "Unexpected termination: health check failed due to missing too many heartbeats"
TWICE = (
    'File "job_manager.py", line 553, in submit_job\n    raise ValueError(\nValueError: Job with '
    "submission_id {} already exists. Please use a different submission_id.\n."
)
BAD = (
    "Job entrypoint command failed with exit code 3, last available logs (truncated to 20,000 "
    "chars):\nRunning entrypoint for job {0}: exec python\npython: No module named jobs\n"
)
LOST = "Job supervisor actor died: The actor died unexpectedly before finishing this task."


class Clock:
    """Time that passes only when a test says so."""

    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def node(number: str, ip: str, **resources: float) -> dict[str, Any]:
    """A machine as the state API lists it."""
    return {
        "node_id": number,
        "node_ip": ip,
        "is_head_node": number == HEAD,
        "state": "ALIVE",
        "state_message": None,
        "node_name": ip,
        "labels": {"ray.io/node-id": number},
        "resources_total": {
            "memory": 15940069376.0,
            "object_store_memory": 6831458304.0,
            f"node:{ip}": 1.0,
            **resources,
        },
    }


class Head:
    """What the head knows, and how it behaves.

    Attributes:
        silence: requests that get no answer, although they are carried out, as "POST /api/jobs/".
        fails: the status that requests are refused with; 0: they are not.
        asked: the requests so far, as "GET /api/jobs/".
    """

    def __init__(self) -> None:
        self.nodes = [
            node(HEAD, "127.0.0.2"),
            node(FIRST, "127.0.1.1", CPU=2.0, GPU=1.0),
            node(SECOND, "127.0.1.2", CPU=1.0),
        ]
        self.jobs: dict[str, dict[str, Any]] = {}
        self.silence: set[str] = set()
        self.fails = 0
        self.asked: list[str] = []

    def kill(self, number: str) -> None:
        """A machine is lost, and noticed after its heartbeats have been missing."""
        for found in self.nodes:
            if found["node_id"] == number:
                found |= {"state": "DEAD", "state_message": DIED}

    def end(self, name: str, status: str, code: int | None = None, message: str = "") -> None:
        """A job ends."""
        self.jobs[name] |= {"status": status, "driver_exit_code": code, "message": message}

    def answer(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        """Status and content of an answer."""
        if self.fails:
            return self.fails, "Internal Server Error"
        name = path.removeprefix("/api/jobs/").removesuffix("/stop")
        match method, path.partition("?")[0]:
            case "GET", "/api/version":
                return 200, {"version": "4", "ray_version": "2.60.0", "session_name": "s"}
            case "GET", "/api/v0/nodes":
                return 200, {"result": True, "data": {"result": {"result": self.nodes}}}
            case "GET", "/api/jobs/":
                return 200, [*self.jobs.values()]
            case "POST", "/api/jobs/":
                return self._submit(body)
        if name not in self.jobs:
            return 404, f"Job {name} does not exist"
        if method == "DELETE":
            return self._delete(name)
        if method == "POST":
            self.end(name, "STOPPED", None, "Job was intentionally stopped.")
            return 200, {"stopped": True}
        return 200, self.jobs[name]

    def _submit(self, body: dict[str, Any]) -> tuple[int, Any]:
        name = body["submission_id"]
        if name in self.jobs:
            return 500, TWICE.format(name)
        self.jobs[name] = {
            "type": "SUBMISSION",
            "job_id": None,
            "submission_id": name,
            "driver_info": None,
            "status": "RUNNING",
            "message": "Job is currently running.",
            "error_type": None,
            "start_time": 1795786864470,
            "end_time": None,
            "metadata": None,
            "driver_agent_http_address": "http://127.0.1.1:-1",
            "driver_node_id": FIRST,
            "driver_exit_code": None,
            **body,
        }
        return 200, {"job_id": name, "submission_id": name}

    def _delete(self, name: str) -> tuple[int, Any]:
        if self.jobs[name]["status"] in ("PENDING", "RUNNING"):
            return 500, f"Attempted to delete job '{name}', but it is in a non-terminal state."
        del self.jobs[name]
        return 200, {"deleted": True}


@contextmanager
def ray_head() -> Iterator[tuple[Head, str]]:
    """A head, and its address."""
    head, silenced = Head(), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            request = f"{self.command} {self.path.partition('?')[0]}"
            head.asked.append(request)
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            status, content = 401, "Unauthorized: Missing authentication token"
            if self.headers.get("Authorization") == f"Bearer {TOKEN}":
                status, content = head.answer(self.command, self.path, body)
            if request in head.silence:
                silenced.wait(60)
                return
            text = content if isinstance(content, str) else json.dumps(content)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        do_GET = do_POST = do_DELETE = _answer  # noqa: N815 - names of the base class

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield head, f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        silenced.set()
        server.shutdown()
        server.server_close()
