from __future__ import annotations
import time
import pytest
from tests.cluster.hosts.conftest import *

def cut(lab): lab.network.part(lab.a, lab.db)
def answers(lab):
    lab.network.cut = {(lab.db.address, lab.a.address)}

@pytest.mark.parametrize("fault", [cut, answers])
def test_try(lab, fault):
    lab.supervise(lab.a)
    until(lambda: lab.leader() == lab.a.address, 60)
    lab.supervise(lab.b)
    time.sleep(6)
    fault(lab)
    print("taken over", until(lambda: lab.leader() == lab.b.address, 60))
