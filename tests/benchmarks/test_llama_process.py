"""llama.cpp in a process of its own, beside a stand-in for its package."""

import signal
from pathlib import Path

import pytest

from benchmarks.peers.llama_process import RemoteLlama
from tests.conftest import ALL

STAND_IN = """
import os
import numpy as np

class Llama:
    def __init__(self, path, n_ctx, **_):
        print("chatter")
        self.n_tokens, self.scores = 0, np.zeros((n_ctx, 8), np.float32)

    def eval(self, tokens):
        if tokens == [6]:
            os.abort()
        for token in tokens:
            self.scores[self.n_tokens] = np.eye(8)[(token + 1) % 8]
            self.n_tokens += 1
"""


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RemoteLlama:
    (tmp_path / "llama_cpp.py").write_text(STAND_IN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "model.gguf").write_bytes(bytes(100))
    return RemoteLlama(tmp_path / "model.gguf", [1, 2], 20, 1)


@pytest.mark.skipif(not ALL, reason="make test-all")
def test_it_writes_and_reads_as_in_one_process_and_its_end_is_told(model: RemoteLlama) -> None:
    assert model.write(3, 3) == [4, 5, 6] and model.bytes == 100
    model.rewind()
    assert model.logits([0, 1]).argmax(1).tolist() == [1, 2]
    assert 0 < model.taken.wall < 20 and model.taken.cpu >= 0
    with pytest.raises(SystemExit, match=f"ended with {-signal.SIGABRT}"):
        model.logits([6])
