"""Trial of every method on the GPU of this machine, in another process."""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace

from backend.models import cards
from backend.queue.launcher import CODE
from backend.settings import settings
from jobs.cli.doctor.machine import HealthCheck

LOG = "doctor-gpu.log"  # in the data folder


def trial() -> list[HealthCheck]:
    """Run every method on the GPU and compare its figures with those of the CPU."""
    found, log = cards.report(), settings().root / LOG
    if not found.cards:
        fix = "Install torch with CUDA (pytorch.org/get-started) and a matching driver."
        return [HealthCheck("device", False, found.reason, fix)]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SLIMSCOPE_")}
    with tempfile.TemporaryDirectory() as folder, log.open("w") as errors:
        process = subprocess.run(
            [sys.executable, "-m", "jobs.cli.doctor.methods"],
            cwd=CODE,
            env={**environment, "SLIMSCOPE_DATA_DIR": folder, "SLIMSCOPE_EXAMPLES": "0"},
            stdout=subprocess.PIPE,
            stderr=errors,
            check=False,
            text=True,
        )
    checks = [HealthCheck(**json.loads(line)) for line in process.stdout.splitlines()]
    if process.returncode:
        checks.append(HealthCheck("process", False, f"exit code {process.returncode}"))
    advice = f"Report it with {log}: docs/gpu.md."
    return [replace(check, fix="" if check.ok else advice) for check in checks]
