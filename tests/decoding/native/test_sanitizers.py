"""The tests of the native decoder and of other C++ once more, with the address and the
undefined-behavior sanitizer in it: they end the process at the first byte that is read or written
elsewhere. And the decoder without Python: on NEON, in an emulator, and under the sanitizer of
threads. All with `make test-all`."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from backend.compiler import CompilerError, _compiler
from backend.kernels.library import SOURCES
from tests.conftest import ALL
from tests.decoding.native.conftest import FLAGS, SANITIZERS

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.skipif(not ALL, reason="sanitizers: make test-all")
OTHERS = ("quantization/test_kernels.py", "linalg/test_gram.py", "pruning/test_descent.py")
HERE = ("test_ranges.py", "test_drafter.py", "test_decoder.py")
FILES = (*HERE, *(f"../../{name}" for name in OTHERS))
REPORTS = "SLIMSCOPE_TEST_REPORTS"  # the folder of what they find
REBUILDS = "AVX2 or plain or compiler or damaged or others_could"  # further builds
OUT_OF_RANGE = """
import ctypes
from tests.decoding.native import conftest
from backend.kernels.library import kernels
x, y = (ctypes.c_float * 2048)(), (ctypes.c_float * 64)()
kernels().top_k(x, 3, 1024, 1, *(ctypes.addressof(y) for _ in range(3)))
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Of a process that uses sanitizers. The decoder with them is kept beside the other one."""
    folder = tmp_path_factory.mktemp("sanitizers")
    try:
        compiler = _compiler()
    except CompilerError as error:
        pytest.skip(str(error))
    (folder / "empty.cpp").write_text('extern "C" int none() { return 0; }\n')
    line = [compiler, *FLAGS, str(folder / "empty.cpp"), "-o", str(folder / "empty.so")]
    built = subprocess.run(line, capture_output=True, text=True)
    needed = ("libasan.so", "libstdc++.so")  # the one looks for exceptions of the other
    asked = ([compiler, f"-print-file-name={name}"] for name in needed)
    libraries = [subprocess.run(x, capture_output=True, text=True).stdout.strip() for x in asked]
    if built.returncode or not all(Path(library).is_absolute() for library in libraries):
        pytest.skip(f"{compiler} has no sanitizers: {built.stderr[:200]}")
    return {
        **os.environ,
        SANITIZERS: "1",
        "LD_PRELOAD": ":".join(libraries),
        "ASAN_OPTIONS": f"detect_leaks=0:log_path={folder / 'report'}",
        REPORTS: str(folder),
    }


def run(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words], env=environment, cwd=ROOT, capture_output=True, text=True
    )


def report(environment: dict[str, str]) -> str:
    """What the sanitizers have found."""
    return "\n".join(path.read_text() for path in Path(environment[REPORTS]).glob("report*"))


def test_a_byte_elsewhere_is_found(environment: dict[str, str]) -> None:
    found = run(environment, "-c", OUT_OF_RANGE)
    assert found.returncode and "heap-buffer-overflow" in report(environment), found.stderr
    for path in Path(environment[REPORTS]).glob("report*"):
        path.unlink()


def test_the_decoder_reads_and_writes_only_what_it_may(environment: dict[str, str]) -> None:
    files = [str(Path(__file__).parent / name) for name in FILES]
    options = ["-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", "-k", f"not ({REBUILDS})"]
    done = run(environment, "-m", "pytest", *options, *files)
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{report(environment)[:4000]}"


SOURCE = Path(__file__).with_name("standalone.cpp")
ALONE = ("-std=c++17", "-O1", "-ffp-contract=fast", "-pthread")
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
    line = [compiler, *ALONE, f"-I{SOURCES}", *options, str(SOURCE), "-o", *program]
    built = subprocess.run(line, capture_output=True, text=True)
    if built.returncode and "cannot find" in built.stderr:
        pytest.skip(built.stderr[-200:])
    assert built.returncode == 0, built.stderr[-2000:]
    run = [*([EMULATOR] if compiler == ARM else []), *program]
    done = subprocess.run(run, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    assert name == "threads" or done.stdout == f"{name}: as expected\n"
