"""The decoder without Python: on NEON, in an emulator, and under the sanitizer of threads."""

import shutil
import subprocess
from pathlib import Path

import pytest

from backend.kernels.library import SOURCES

SOURCE = Path(__file__).with_name("standalone.cpp")
FLAGS = ("-std=c++17", "-O1", "-ffp-contract=fast", "-pthread")
ARM, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
BUILDS = {
    "threads": ("g++", "-march=native", "-fsanitize=thread"),
    "NEON": (ARM, "-march=armv8-a", "-static"),
    "NEON with dot products": (ARM, "-march=armv8.2-a+dotprod", "-static"),
}


@pytest.mark.parametrize("name", BUILDS)
def test_products_and_passes_are_as_expected(name: str, tmp_path: Path) -> None:
    compiler, *options = BUILDS[name]
    program = [str(tmp_path / "standalone")]
    if missing := [x for x in {compiler, *([EMULATOR] * (compiler == ARM))} if not shutil.which(x)]:
        pytest.skip(f"there is no {missing[0]}")
    line = [compiler, *FLAGS, f"-I{SOURCES}", *options, str(SOURCE), "-o", *program]
    built = subprocess.run(line, capture_output=True, text=True)
    if built.returncode and "cannot find" in built.stderr:
        pytest.skip(built.stderr[-200:])
    assert built.returncode == 0, built.stderr[-2000:]
    run = [*([EMULATOR] if compiler == ARM else []), *program]
    done = subprocess.run(run, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    assert name == "threads" or done.stdout == f"{name}: as expected\n"
