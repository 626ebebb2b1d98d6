"""A Slurm cluster whose controller and nodes are hosts.

apt install slurmctld slurmd slurm-client munge
"""

import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from tests.cluster.hosts.network import Host
from tests.waiting import until

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged")
NODE_TIMEOUT_S = 20  # instead of 300
CONFIG = """
ClusterName=lab
SlurmctldHost={head.name}({head.address})
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/controller.pid
SlurmdPidFile={folder}/%n.pid
SlurmdTimeout={timeout}
SlurmdParameters=config_overrides
ReturnToService=2
MailProg=/bin/true
"""
NODE = "NodeName={host.name} NodeAddr={host.address} CPUs=1\n"
PARTITION = "PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE\n"


def missing() -> str:
    """Why there can be no cluster here; empty if there can."""
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    return f"Slurm is not installed: no {', '.join(absent)}" if absent else ""


def start(folder: Path, head: Host, nodes: Sequence[Host]) -> dict[str, str]:
    """Start the cluster, and wait until it takes jobs.

    Args:
        folder: for its files; its path has to be short, since it holds a socket.

    Returns:
        What the environment of a machine says that uses it.
    """
    (folder / "state").mkdir()
    config = folder / "slurm.conf"
    lines = [NODE.format(host=host) for host in nodes]
    text = CONFIG.format(head=head, folder=folder, timeout=NODE_TIMEOUT_S)
    config.write_text("".join([text, *lines, PARTITION]))
    (folder / "cgroup.conf").write_text("CgroupPlugin=disabled\n")
    key, told = folder / "key", {"SLURM_CONF": str(config)}
    key.write_bytes(b"a key of this test alone, of no worth")
    key.chmod(0o600)
    for host in (head, *nodes):
        host.told |= told  # each looks up who asks
    parts = {
        "socket": "munge",
        "pid-file": "munge.pid",
        "log-file": "munge.log",
        "seed-file": "seed",
    }
    munge = [f"--{option}={folder / name}" for option, name in parts.items()]
    head.execute("munged", "--foreground", "--force", f"--key-file={key}", *munge)
    until((folder / "munge").exists)
    head.execute("slurmctld", "-D", "-i")
    for node in nodes:
        node.execute("slurmd", "-D", "-N", node.name)

    def ready() -> bool:
        time.sleep(0.5)
        line = ("sinfo", "--noheader", "--states=idle", "--format=%D")
        said = head.execute(*line, output=subprocess.PIPE).communicate()[0]
        return said.strip() == str(len(nodes)).encode()

    until(ready, 60)
    return told
