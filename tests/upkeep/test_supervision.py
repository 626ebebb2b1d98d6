"""The files that start the dashboard as a service, and what it says to those who collect logs."""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from backend.logs import JsonFormatter
from backend.settings import OTHER_VARIABLES, Settings
from tests.waiting import until

PACKAGING = Path(__file__).parents[2] / "packaging"
RUN = "trap 'echo saved; exit' TERM; echo works; while :; do sleep 0.1; done"
DASHBOARD = f"setsid sh -c \"{RUN}\" & trap 'exit 143' TERM; while :; do sleep 0.1; done"


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not installed")
def test_the_unit_of_systemd_is_one(tmp_path: Path) -> None:
    text = (PACKAGING / "slimscope.service").read_text()
    unit = tmp_path / "slimscope.service"
    unit.write_text(text.replace("/opt/slimscope/bin/slimscope", f'"{sys.executable}"'))
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_the_compose_file_sets_are_settings() -> None:
    services = yaml.safe_load((PACKAGING / "compose.yaml").read_text())["services"]
    told = services["dashboard"]["environment"]
    known = {f"SLIMSCOPE_{name.upper()}" for name in Settings.model_fields} | OTHER_VARIABLES
    assert {name for name in told if name.startswith("SLIMSCOPE_")} <= known
    assert services["dashboard"]["hostname"] and "database" in told["SLIMSCOPE_DATABASE_URL"]


@pytest.mark.skipif(
    not sys.platform.startswith("linux") or bool(os.geteuid()), reason="takes root on Linux"
)
def test_a_container_that_is_stopped_lets_runs_save(tmp_path: Path) -> None:
    space = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    if subprocess.run([*space, "true"]).returncode:
        pytest.skip("namespaces are not allowed here")
    (tmp_path / "log").touch()
    with (tmp_path / "log").open("w") as log:
        line = [*space, PACKAGING / "start.sh", "sh", "-c", DASHBOARD]
        first = subprocess.Popen(line, stdout=log, stderr=log)
        until(lambda: "works" in (tmp_path / "log").read_text())
        (child,) = Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split()
        os.kill(int(child), signal.SIGTERM)
        assert first.wait(20) == 0
    assert "saved" in (tmp_path / "log").read_text()


def test_a_line_of_the_log_is_an_object() -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError:
        given = ("slimscope", logging.ERROR, "file", 1, "%s failed", ("it",), sys.exc_info())
    line = JsonFormatter().format(logging.LogRecord(*given))
    said = json.loads(line)
    assert "\n" not in line and said["trace"].endswith("ValueError: two\nlines")
    assert (said["level"], said["logger"], said["message"]) == ("error", "slimscope", "it failed")
    assert said["at"][:4] == time.strftime("%Y", time.gmtime()) and said["at"].endswith("+00:00")
