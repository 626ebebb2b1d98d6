"""What stands for the commands of Slurm: answers recorded from Slurm 24.11 with two nodes."""

import json
from collections.abc import Sequence

from backend.queue.engines.slurm import SlurmError

UNSET = {"set": False, "infinite": False, "number": 0}


def number(value: int) -> dict:
    return {"set": True, "infinite": False, "number": value}


def exit_code(status: str, code: dict, signal: dict, name: str = "") -> dict:
    return {"status": [status], "return_code": code, "signal": {"id": signal, "name": name}}


FINE = exit_code("SUCCESS", number(0), UNSET)
STATES = {  # what squeue --json lists -> what becomes of it
    "pending": (["PENDING"], FINE, "Resources", ("running", None)),
    "running": (["RUNNING"], FINE, "None", ("running", None)),
    "completing": (["CANCELLED", "COMPLETING"], FINE, "None", ("running", None)),
    "done": (["COMPLETED"], FINE, "None", ("exited", 0)),
    "bad": (
        ["FAILED"],
        exit_code("ERROR", number(3), UNSET),
        "NonZeroExitCode",
        ("exited", 3),
    ),
    "killed": (
        ["FAILED"],
        exit_code("SIGNALED", UNSET, number(9), "KILL"),
        "RaisedSignal",
        ("exited", -9),
    ),
    "cancelled": (
        ["CANCELLED"],
        exit_code("SIGNALED", UNSET, number(15), "TERM"),
        "None",
        ("exited", -15),
    ),
    "lost": (["NODE_FAIL"], FINE, "NodeDown", ("exited", None)),
    "of an older Slurm": ("RUNNING", FINE, "None", ("running", None)),
}


class Slurm:
    """What stands for the commands.

    Attributes:
        fails: commands that fail; hides: those that do what they are asked and fail.
        ran: the commands so far, with what they were given.
    """

    def __init__(self) -> None:
        self.jobs: dict[str, dict] = {}
        self.fails: set[str] = set()
        self.hides: set[str] = set()
        self.ran: list[tuple[list[str], str]] = []

    def run(self, line: Sequence[str], given: str = "") -> str:
        self.ran.append(([*line], given))
        if line[0] in self.fails:
            raise SlurmError("slurm_load_jobs error: Unable to contact slurm controller")
        answer = ""
        if line[0] == "squeue":
            answer = json.dumps({"jobs": [*self.jobs.values()]})
        elif line[0] == "sbatch":
            name = next(each for each in line if each.startswith("--job-name=")).partition("=")[2]
            self.list(name, *STATES["running"][:3])
            answer = f"{len(self.jobs)}\n"
        if line[0] in self.hides:
            raise SlurmError(f"{line[0]} does not answer")
        return answer

    def list(self, name: str, state: object, code: dict, reason: str) -> None:
        self.jobs[name] = {
            "name": name,
            "job_state": state,
            "exit_code": code,
            "state_reason": reason,
        }
