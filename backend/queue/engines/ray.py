"""Jobs on a Ray cluster, by the HTTP interface of its head (Ray Jobs); Ray itself is not imported.

The name of a Ray job follows from the attempt, so a launch whose answer was lost is found again and
never repeated. Only as much is submitted as there is room for: Ray has no order of its own.
"""

import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import quote

import httpx

from backend.queue.engines.base import LaunchRequest, PollResult, Ref, Room
from backend.settings import Settings

ANSWER_S = 3.0  # within which the head has to answer
PAUSE_S = 5.0  # before it is asked again when it has not, and before a stop is repeated
ROOM_S, JOBS_S = 4.0, 1.0  # for which an answer is good
AT_WORK = ("PENDING", "RUNNING")
WHY_LETTERS = 500
PYTHON = "${SLIMSCOPE_PYTHON:-python}"  # decided by the environment of the node


class RayHeadError(OSError):
    """The head of a cluster did not do what it was asked. `code`: HTTP status; None: no answer."""

    def __init__(self, text: str, code: int | None = None) -> None:
        super().__init__(text)
        self.code = code


class RayHead:
    """The head of a cluster at an address such as http://gpu-1:8265. When it does not answer, it is
    left alone for a while, so that the supervisor does not spend its time waiting."""

    def __init__(
        self, address: str, token: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._client = httpx.Client(
            base_url=address,
            headers={"Authorization": f"Bearer {token}"},
            timeout=ANSWER_S,
            trust_env=False,  # no proxy sees the token
        )
        self._clock, self._not_before = clock, float("-inf")

    def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The answer to a request; `RayHeadError` if it was refused, or there was none."""
        if self._clock() < self._not_before:
            raise RayHeadError("The head of the cluster does not answer.")
        try:
            answer = self._client.request(method, path, json=body)
        except httpx.HTTPError as error:
            self._not_before = self._clock() + PAUSE_S
            raise RayHeadError(f"The head of the cluster does not answer: {error}") from error
        if answer.is_error:
            text = answer.text.strip()[-WHY_LETTERS:]
            raise RayHeadError(f"The head of the cluster refused: {text}", answer.status_code)
        try:
            return answer.json()
        except ValueError as error:
            raise RayHeadError("The answer is not that of a Ray head.") from error

    def version(self) -> str:
        return str(self.ask("GET", "/api/version")["ray_version"])

    def nodes(self) -> list[dict[str, Any]]:
        """The machines there are and were."""
        return list(self.ask("GET", "/api/v0/nodes?limit=10000")["data"]["result"]["result"])

    def jobs(self) -> dict[str, dict[str, Any]]:
        """The jobs that the head knows, by name."""
        return {job["submission_id"]: job for job in self.ask("GET", "/api/jobs/")}


class RayEngine:
    """Submits each attempt as a Ray job that holds `cpus` cores and `gpus` GPUs of one machine.
    `grace`: seconds between SIGTERM and SIGKILL."""

    name = "ray"
    host = "the Ray cluster"
    remote = True

    def __init__(
        self,
        head: RayHead,
        cpus: float,
        gpus: float,
        grace: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._head, self._cpus, self._gpus, self._grace = head, cpus, gpus, grace
        self._clock = clock
        self._room, self._room_at = Room(0, known=False), float("-inf")
        self._jobs: dict[str, dict[str, Any]] = {}
        self._jobs_at = float("-inf")
        self._dead: frozenset[str] = frozenset()  # ids of machines
        self._stopped: dict[str, float] = {}  # job -> when it was last asked to stop
        self._ended: set[str] = set()  # jobs that the head is still to forget

    def room(self) -> Room:
        """On the machines that are there. A job stays on one."""
        now = self._clock()
        if now - self._room_at < ROOM_S:
            return self._room
        try:
            nodes = self._head.nodes()
        except RayHeadError:
            self._room = Room(self._room.places, known=False)
            return self._room
        alive = [node["resources_total"] for node in nodes if node["state"] == "ALIVE"]
        self._dead = frozenset(node["node_id"] for node in nodes if node["state"] == "DEAD")
        self._room, self._room_at = Room(sum(map(self._places, alive))), now
        for name in [*self._ended]:
            self._delete(name)
        return self._room

    def _places(self, resources: Mapping[str, float]) -> int:
        """How many jobs fit on a machine."""
        by_gpus = [resources.get("GPU", 0) // self._gpus] if self._gpus else []
        return int(min([resources.get("CPU", 0) // self._cpus, *by_gpus]))

    def reference(self, launch: LaunchRequest) -> Ref:
        return {"job": f"slimscope-{launch.attempt_id}-{launch.token[:8]}"}

    def launch(self, launch: LaunchRequest) -> Ref:
        ref = self.reference(launch)
        self._jobs_at = float("-inf")
        waiting = {"RAY_JOB_STOP_WAIT_TIME_S": str(round(self._grace))}
        submission = {
            "entrypoint": f"exec {PYTHON} {shlex.join(launch.argv[1:])}",
            "submission_id": ref["job"],
            "entrypoint_num_cpus": self._cpus,
            "entrypoint_num_gpus": self._gpus,
            "runtime_env": {"env_vars": {**launch.environment, **waiting}},
        }
        try:
            self._head.ask("POST", "/api/jobs/", submission)
        except RayHeadError as error:
            if error.code is not None:
                try:
                    self._head.ask("GET", _path(ref))  # it may know the job all the same
                except RayHeadError as unknown:
                    if unknown.code is not None:
                        raise error from unknown
        return ref  # whether it was submitted after all, the next poll says

    def poll(self, refs: Sequence[Ref]) -> list[PollResult]:
        now = self._clock()
        if refs and now - self._jobs_at >= JOBS_S:
            try:
                self._jobs, self._jobs_at = self._head.jobs(), now
            except RayHeadError:
                return [PollResult("unknown")] * len(refs)
        return [self._result(self._jobs.get(ref["job"])) for ref in refs]

    def _result(self, job: Mapping[str, Any] | None) -> PollResult:
        """The fate of a job. Of one whose machine is lost the head may say for ever that it
        runs."""
        if job is None:
            return PollResult("exited")
        if job["status"] in AT_WORK:
            return PollResult("exited" if job.get("driver_node_id") in self._dead else "running")
        code = job.get("driver_exit_code")
        if job["status"] == "FAILED":
            return PollResult("exited", code, str(job.get("message") or "")[-WHY_LETTERS:])
        return PollResult("exited", code)

    def stop(self, ref: Ref) -> None:
        """SIGTERM to the job and its children, SIGKILL after the grace it was started with."""
        now = self._clock()
        if now - self._stopped.get(ref["job"], float("-inf")) >= PAUSE_S:
            self._stopped[ref["job"]] = now
            with suppress(RayHeadError):  # it is asked again
                self._head.ask("POST", f"{_path(ref)}/stop")

    def kill(self, ref: Ref) -> None:
        """Ray has no other way than `stop`: a job that is to be killed ends itself."""
        self.stop(ref)

    def forget(self, ref: Ref) -> None:
        self._stopped.pop(ref["job"], None)
        self._ended.add(ref["job"])
        self._delete(ref["job"])

    def _delete(self, name: str) -> None:
        """Have the head forget a job, until it says that there is none: it may just be writing down
        how the job ended. It keeps one that it takes to run."""
        try:
            self._head.ask("DELETE", _path({"job": name}))
        except RayHeadError as error:
            if error.code is not None:
                self._ended.discard(name)


def _path(ref: Ref) -> str:
    return f"/api/jobs/{quote(ref['job'], safe='')}"


def head_of(here: Settings) -> RayHead:
    return RayHead(here.ray_address, here.ray_token.get_secret_value())


def described(here: Settings) -> str:
    """The cluster in words; `RayHeadError` if it does not answer, or not to us."""
    head = head_of(here)
    nodes = [node for node in head.nodes() if node["state"] == "ALIVE"]
    return f"Ray {head.version()} at {here.ray_address}, {len(nodes)} machines with the head"


def made(here: Settings) -> RayEngine:
    return RayEngine(head_of(here), here.threads or 1, here.job_gpus, here.stop_grace)
