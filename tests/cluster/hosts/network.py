"""Hosts on one machine and a network between them: each has its own addresses, processes, name and
`/etc/hosts`, in namespaces of the kernel. Files are those of the machine, so what two hosts share
is shared as over a file system that never fails.

The network is a router of our own, between a TUN device in each host: what `tc netem` and `nft` do
to packets, where the kernel and the machine have neither.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import ipaddress
import os
import random
import shutil
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[3]
NAMES = "lab"  # domain of the hosts
NET, TUN = "10.77.0.{}", Path("/dev/net/tun")
SET_INTERFACE, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000  # linux/if_tun.h
CLONE_NEWNET = 0x40000000
PACKET = 65_536
INHERITED = ("PATH", "HOME", "LANG", "TMPDIR", "LD_LIBRARY_PATH")


def missing() -> str:
    """Why there can be no hosts here; empty if there can."""
    if not sys.platform.startswith("linux") or os.geteuid():
        return "namespaces and addresses take root on Linux"
    programs = [name for name in ("ip", "unshare", "nsenter", "mount") if not shutil.which(name)]
    if programs or not TUN.exists():
        return f"there is no {programs[0] if programs else TUN}"
    ours = subprocess.run(["unshare", "--net", "--pid", "--mount", "--fork", "true"]).returncode
    return "namespaces are not allowed here" if ours else ""


class Network:
    """A router that may lose and delay packets, and the names of who is connected.

    Attributes:
        cut: pairs (from, to) of addresses between which every packet is lost; nobody is told.
        delay_s, loss: of each packet, one way; the share of packets that are lost.
    """

    def __init__(self) -> None:
        self.cut: set[tuple[str, str]] = set()
        self.delay_s, self.loss = 0.0, 0.0
        self._devices: dict[str, int] = {}
        self._chance = random.Random(0)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def connect(self, pid: int, address: str) -> None:
        """Give the network namespace of a process a device and an address."""
        device, name = os.open(TUN, os.O_RDWR | os.O_NONBLOCK), f"slim{len(self._devices)}"
        fcntl.ioctl(
            device, SET_INTERFACE, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI)
        )
        subprocess.run(["ip", "link", "set", name, "netns", str(pid)], check=True)
        for line in (f"link set {name} up", f"addr add {address}/24 dev {name}", "link set lo up"):
            subprocess.run(["nsenter", "-t", str(pid), "-n", "ip", *line.split()], check=True)
        self._devices[address] = device
        self._loop.call_soon_threadsafe(self._loop.add_reader, device, self._route, device)

    def _route(self, device: int) -> None:
        try:
            packet = os.read(device, PACKET)
        except OSError:  # its host is gone
            self._loop.remove_reader(device)
            return
        if packet[0] >> 4 != 4:
            return
        pair = (str(ipaddress.ip_address(packet[12:16])), str(ipaddress.ip_address(packet[16:20])))
        to = self._devices.get(pair[1])
        if to is None or pair in self.cut or self._chance.random() < self.loss:
            return
        if self.delay_s:
            self._loop.call_later(self.delay_s, self._deliver, to, packet)
        else:
            self._deliver(to, packet)

    def _deliver(self, device: int, packet: bytes) -> None:
        try:
            os.write(device, packet)
        except OSError:  # its host is gone
            return

    def part(self, one: Host, other: Host) -> None:
        """Lose what these two send each other."""
        self.cut |= {(one.address, other.address), (other.address, one.address)}

    def heal(self) -> None:
        """Lose and delay nothing more."""
        self.cut, self.delay_s, self.loss = set(), 0.0, 0.0

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        for device in self._devices.values():
            os.close(device)


class Host:
    """A host, whose first process only waits: without it, all others are gone.

    Args:
        folder: of its own.
        boot: the id of its boot; empty: that of this machine, as a container has.
        told: the environment of what it starts.
    """

    def __init__(
        self, network: Network, name: str, number: int, folder: Path, boot: str = "",
        told: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        self.network, self.name, self.folder = network, name, folder
        self.address, self.told = NET.format(number), dict(told or {})
        folder.mkdir(exist_ok=True)
        binds = {"hosts": "/etc/hosts", "resolv.conf": "/etc/resolv.conf"}
        texts = {"hosts": "127.0.0.1 localhost\n", "resolv.conf": f"nameserver {NET.format(53)}\n"}
        if boot:
            binds["boot"], texts["boot"] = "/proc/sys/kernel/random/boot_id", f"{boot}\n"
        for file, text in texts.items():
            (folder / file).write_text(text)
        lines = [f"mount --bind {folder / file} {place}" for file, place in binds.items()]
        script = " && ".join([*lines, f"hostname {name}", "echo", "exec sleep infinity"])
        line = ["unshare", "--net", "--uts", "--pid", "--mount", "--fork", "--kill-child"]
        self._first = subprocess.Popen(
            [*line, "--mount-proc", "sh", "-c", script], stdout=subprocess.PIPE
        )
        assert self._first.stdout is not None and self._first.stdout.readline()
        (child,) = psutil.Process(self._first.pid).children()
        self.pid = child.pid
        network.connect(self.pid, self.address)

    def knows(self, *others: Host) -> None:
        """Let it find these by their names; nobody else, as no server of names answers."""
        names = [f"{other.address} {other.name}.{NAMES}" for other in (self, *others)]
        (self.folder / "hosts").write_text("\n".join(["127.0.0.1 localhost", *names, ""]))

    def start(self, *given: str, **told: str) -> subprocess.Popen[bytes]:
        """Start the Python of the tests there; what it says goes to `log` in its folder."""
        inherited = {key: os.environ[key] for key in INHERITED if key in os.environ}
        environment = {**inherited, **self.told, "PYTHONPATH": f"{ROOT}:{HERE}", **told}
        line = ["nsenter", "-t", str(self.pid), "-n", "-u", "-p", "-m", f"--wd={ROOT}"]
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(
                [*line, sys.executable, *given], env=environment, stdout=log, stderr=log
            )

    def processes(self, part: str) -> list[psutil.Process]:
        """Its processes that have this in their command line."""
        space, found = Path(f"/proc/{self.pid}/ns/pid").readlink(), []
        for process in psutil.process_iter():
            try:
                inside = Path(f"/proc/{process.pid}/ns/pid").readlink() == space
                if inside and part in " ".join(process.cmdline()):
                    found.append(process)
            except (OSError, psutil.Error):
                continue
        return found

    @contextmanager
    def inside(self) -> Iterator[None]:
        """This thread opens sockets, and starts processes, in the network of the host."""
        libc = ctypes.CDLL(None, use_errno=True)
        with (
            Path("/proc/thread-self/ns/net").open() as here,
            Path(f"/proc/{self.pid}/ns/net").open() as it,
        ):
            assert not libc.setns(it.fileno(), CLONE_NEWNET), os.strerror(ctypes.get_errno())
            try:
                yield
            finally:
                assert not libc.setns(here.fileno(), CLONE_NEWNET)

    def lose(self) -> None:
        """As a power cut does: all its processes are gone, and its connections are not closed."""
        away = {(self.address, other) for other in self.network._devices}
        self.network.cut |= away | {(other, one) for one, other in away}
        self._first.kill()
        self._first.wait()
