"""A process that is there before its run: it has imported what runs need, which takes a processor
three seconds, and waits.

It is started as that of a run is, with the environment that the next run will have, and told the
rest by one line of JSON on its standard input; from then on nothing tells the two apart. The end
of its input, such as the death of its supervisor, is its own.
"""

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path

from backend.queue.engines.base import LaunchRequest

GPUS = "CUDA_VISIBLE_DEVICES"  # read when a GPU is first used, unlike others, which imports read
PACKAGES = ("backend", "jobs")  # of ours, which a run imports


class SpareProcess:
    """One such process. `launch`: of no attempt; its last argument makes the process wait for those
    of one."""

    def __init__(self, launch: LaunchRequest) -> None:
        self._launch, self._code = launch, code_state(launch.folder)
        self._child = subprocess.Popen(
            launch.argv,
            cwd=launch.folder,
            env=_imported(launch.environment),
            stdin=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )

    def is_alive(self) -> bool:
        return self._child.poll() is None

    def fits(self, launch: LaunchRequest) -> bool:
        """Whether it was started as the process of this launch would be."""
        mine, words = self._launch, len(self._launch.argv) - 1
        return (mine.folder, mine.argv[:words]) == (
            launch.folder,
            launch.argv[:words],
        ) and _imported(mine.environment) == _imported(launch.environment)

    def is_current(self) -> bool:
        """Whether the code on the disk is still what it has imported."""
        return self._code == code_state(self._launch.folder)

    def hand_over(self, launch: LaunchRequest, gpus: str | None) -> subprocess.Popen[bytes]:
        """Let it be the process of a launch that it fits, and see these GPUs; None: all. Raises
        OSError: it has died, and done nothing."""
        arguments = [*launch.argv[len(self._launch.argv) - 1 :], "--log", launch.log]
        environment = {} if gpus is None else {GPUS: gpus}
        task = {"arguments": arguments, "environment": environment}
        assert self._child.stdin
        with self._child.stdin as line:
            line.write(json.dumps(task).encode() + b"\n")
        return self._child

    def end(self) -> None:
        self._child.kill()  # it has started no other
        self._child.communicate()


def code_state(folder: str) -> frozenset[tuple[str, int]]:
    """The files with our code, and when each was changed."""
    files = (file for name in PACKAGES for file in Path(folder, name).rglob("*.py"))
    return frozenset((str(file), file.stat().st_mtime_ns) for file in files)


def _imported(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that imports may have read."""
    return {name: text for name, text in environment.items() if name != GPUS}
