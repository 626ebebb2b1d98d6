from __future__ import annotations
import time
import pytest
from tests.cluster.hosts.conftest import *
END = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE client_addr IS NOT NULL"

def cut(lab): lab.network.part(lab.a, lab.db)
def answers(lab): lab.network.cut = {(lab.db.address, lab.a.address)}
def names(lab):
    lab.a.knows()
    lab.server.execute(END)
def stopped(lab): lab.server.stop()

@pytest.mark.parametrize("fault", [cut, answers, names, stopped])
def test_try(lab, fault):
    lab.supervise(lab.a, SLIMSCOPE_OFFLINE_S="600")
    run = lab.count(steps=120, pause=0.2)
    print("claimed", until(lambda: steps(run) > 1, 60), lab.leader())
    fault(lab)
    t=time.monotonic()
    for k in range(12):
        time.sleep(2); print(k, steps(run), lab.leader() if fault is not stopped else "")
    lab.network.heal(); lab.a.knows(lab.db)
    if fault is stopped:
        with lab.db.inside(): lab.server.start()
    n=len(counted(run))
    print("takes", until(lambda: len(counted(run))>n+3, 60))
    print("leader", until(lambda: lab.leader(), 60))
    print("ended", until(lambda: is_in(run, State.SUCCEEDED), 60), len(attempts(run)), counted(run)==[*range(120)])
    print((lab.a.folder/"log").read_text()[-1500:])
