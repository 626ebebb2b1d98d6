"""With `SLIMSCOPE_TEST_SANITIZERS` these tests use a decoder built under sanitizers; see
`test_sanitizers.py`."""

import os

from backend import compiler

SANITIZERS = "SLIMSCOPE_TEST_SANITIZERS"
FLAGS = (
    "-std=c++17",
    "-O0",
    "-g1",
    "-ffp-contract=fast",
    "-shared",
    "-fPIC",
    "-pthread",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
    "-fno-omit-frame-pointer",
)

if os.environ.get(SANITIZERS):
    compiler.FLAGS = FLAGS
    os.environ.pop("LD_PRELOAD", None)  # not for the processes that these tests start
