"""Jobs on a Ray cluster, through the HTTP interface of its head (Ray Jobs), without importing Ray.

The name of a Ray job is derived from the attempt, so that a launch whose reply was lost is found
again and never repeated. No more jobs are submitted than the cluster can run at once, as Ray does
not order them.
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

HEAD_TIMEOUT_S = 3.0
RETRY_PAUSE_S = 5.0  # pause before the next request to a silent head, and before a stop is repeated
ROOM_CACHE_S, JOBS_CACHE_S = 4.0, 1.0
ACTIVE_STATUSES = ("PENDING", "RUNNING")
MAX_REASON_LETTERS = 500
PYTHON = "${SLIMSCOPE_PYTHON:-python}"  # expanded on the node


class RayHeadError(OSError):
    """A failed request to the head of a cluster; `code`: HTTP status, None if it did not answer."""

    def __init__(self, text: str, code: int | None = None) -> None:
        super().__init__(text)
        self.code = code


class RayHead:
    """The head of a cluster at an address such as http://gpu-1:8265.

    After a timeout, requests fail for a while without being sent, so that the supervisor does not
    spend its time waiting."""

    def __init__(
        self, address: str, token: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._client = httpx.Client(
            base_url=address,
            headers={"Authorization": f"Bearer {token}"},
            timeout=HEAD_TIMEOUT_S,
            trust_env=False,  # no proxy sees the token
        )
        self._clock, self._not_before = clock, float("-inf")

    def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The JSON answer to a request.

        Raises:
            RayHeadError: the head refused the request, or did not answer.
        """
        if self._clock() < self._not_before:
            raise RayHeadError("The head of the cluster does not answer.")
        try:
            answer = self._client.request(method, path, json=body)
        except httpx.HTTPError as error:
            self._not_before = self._clock() + RETRY_PAUSE_S
            raise RayHeadError(f"The head of the cluster does not answer: {error}") from error
        if answer.is_error:
            text = answer.text.strip()[-MAX_REASON_LETTERS:]
            raise RayHeadError(f"The head of the cluster refused: {text}", answer.status_code)
        try:
            return answer.json()
        except ValueError as error:
            raise RayHeadError("The server at this address is not a Ray head.") from error

    def version(self) -> str:
        """The version of Ray."""
        return str(self.ask("GET", "/api/version")["ray_version"])

    def nodes(self) -> list[dict[str, Any]]:
        """All present and former machines of the cluster."""
        return list(self.ask("GET", "/api/v0/nodes?limit=10000")["data"]["result"]["result"])

    def jobs(self) -> dict[str, dict[str, Any]]:
        """All jobs that the head remembers, by name."""
        return {job["submission_id"]: job for job in self.ask("GET", "/api/jobs/")}


class RayEngine:
    """Submits each attempt as a Ray job on one machine.

    Args:
        head: head of the cluster.
        cpus, gpus: cores and GPUs per job.
        grace: seconds between SIGTERM and SIGKILL.
        clock: monotonic clock, in seconds.
    """

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
        self._room, self._room_at = Room(0, is_reachable=False), float("-inf")
        self._jobs: dict[str, dict[str, Any]] = {}
        self._jobs_at = float("-inf")
        self._dead_nodes: frozenset[str] = frozenset()  # ids
        self._stopped_at: dict[str, float] = {}  # time of the last stop request by job
        self._ended: set[str] = set()  # jobs that the head has not deleted yet

    def room(self) -> Room:
        """The number of jobs that fit on the live machines, each on one machine."""
        now = self._clock()
        if now - self._room_at < ROOM_CACHE_S:
            return self._room
        try:
            nodes = self._head.nodes()
        except RayHeadError:
            self._room = Room(self._room.places, is_reachable=False)
            return self._room
        alive = [node["resources_total"] for node in nodes if node["state"] == "ALIVE"]
        self._dead_nodes = frozenset(node["node_id"] for node in nodes if node["state"] == "DEAD")
        self._room, self._room_at = Room(sum(map(self._places_on, alive))), now
        for name in [*self._ended]:
            self._delete(name)
        return self._room

    def _places_on(self, resources: Mapping[str, float]) -> int:
        """The number of jobs that fit on a machine."""
        by_gpus = [resources.get("GPU", 0) // self._gpus] if self._gpus else []
        return int(min([resources.get("CPU", 0) // self._cpus, *by_gpus]))

    def reference(self, launch: LaunchRequest) -> Ref:
        """The name of the Ray job of an attempt."""
        return {"job": f"slimscope-{launch.attempt_id}-{launch.token[:8]}"}

    def launch(self, launch: LaunchRequest) -> Ref:
        """Submit the Ray job of an attempt."""
        ref = self.reference(launch)
        self._jobs_at = float("-inf")
        stop_variables = {"RAY_JOB_STOP_WAIT_TIME_S": str(round(self._grace))}
        submission = {
            "entrypoint": f"exec {PYTHON} {shlex.join(launch.argv[1:])}",
            "submission_id": ref["job"],
            "entrypoint_num_cpus": self._cpus,
            "entrypoint_num_gpus": self._gpus,
            "runtime_env": {"env_vars": {**launch.environment, **stop_variables}},
        }
        try:
            self._head.ask("POST", "/api/jobs/", submission)
        except RayHeadError as error:
            if error.code is not None:
                try:
                    self._head.ask("GET", _path(ref))  # the job may have been submitted before
                except RayHeadError as missing:
                    if missing.code is not None:
                        raise error from missing
        return ref  # after a timeout, the next poll shows if the job was submitted

    def poll(self, refs: Sequence[Ref]) -> list[PollResult]:
        """The status of jobs, from the head's list of jobs."""
        now = self._clock()
        if refs and now - self._jobs_at >= JOBS_CACHE_S:
            try:
                self._jobs, self._jobs_at = self._head.jobs(), now
            except RayHeadError:
                return [PollResult("unknown")] * len(refs)
        return [self._result(self._jobs.get(ref["job"])) for ref in refs]

    def _result(self, job: Mapping[str, Any] | None) -> PollResult:
        """The status of a job in the head's list; None if the list lacks it.

        The head may report the job of a dead machine as running forever."""
        if job is None:
            return PollResult("exited")
        if job["status"] in ACTIVE_STATUSES:
            is_dead = job.get("driver_node_id") in self._dead_nodes
            return PollResult("exited" if is_dead else "running")
        code = job.get("driver_exit_code")
        if job["status"] == "FAILED":
            return PollResult("exited", code, str(job.get("message") or "")[-MAX_REASON_LETTERS:])
        return PollResult("exited", code)

    def stop(self, ref: Ref) -> None:
        """Make Ray send SIGTERM to the job and its children, and SIGKILL after the grace period."""
        now = self._clock()
        if now - self._stopped_at.get(ref["job"], float("-inf")) >= RETRY_PAUSE_S:
            self._stopped_at[ref["job"]] = now
            with suppress(RayHeadError):  # the supervisor repeats the request
                self._head.ask("POST", f"{_path(ref)}/stop")

    def kill(self, ref: Ref) -> None:
        """Stop the job: Ray has no other request. A job that is to be killed also ends itself."""
        self.stop(ref)

    def forget(self, ref: Ref) -> None:
        """Delete the job from the head's list."""
        self._stopped_at.pop(ref["job"], None)
        self._ended.add(ref["job"])
        self._delete(ref["job"])

    def _delete(self, name: str) -> None:
        """Delete a job from the head's list. It stays in `_ended` until the head does not know it.

        The head refuses to delete a job that it considers running, and may write the job's end
        after the deletion."""
        try:
            self._head.ask("DELETE", _path({"job": name}))
        except RayHeadError as error:
            if error.code is not None:
                self._ended.discard(name)


def _path(ref: Ref) -> str:
    return f"/api/jobs/{quote(ref['job'], safe='')}"


def head_of(settings: Settings) -> RayHead:
    """The head of the cluster in the settings."""
    return RayHead(settings.ray_address, settings.ray_token.get_secret_value())


def described(settings: Settings) -> str:
    """A one-line description of the cluster.

    Raises:
        RayHeadError: the head does not answer, or refuses.
    """
    head = head_of(settings)
    nodes = [node for node in head.nodes() if node["state"] == "ALIVE"]
    return f"Ray {head.version()} at {settings.ray_address}, {len(nodes)} machines with the head"


def engine_from_settings(settings: Settings) -> RayEngine:
    """The engine of the cluster in the settings."""
    head = head_of(settings)
    return RayEngine(head, settings.threads or 1, settings.job_gpus, settings.stop_grace)
