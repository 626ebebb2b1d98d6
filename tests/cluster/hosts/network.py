"""Hosts on one machine and a network between them: each has its own address, processes, name and
`/etc/hosts`, in namespaces of the kernel, and a file system of its own for its data. Other files
are those of the machine: what two hosts share there is as if bind-mounted, and never fails.

The network is a router of our own between a TUN device in each host. It does to packets what `tc
netem` and `nft` do, where the kernel and the machine have neither.
"""

import asyncio
import ctypes
import fcntl
import os
import random
import shutil
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[3]
NET, TUN = "10.77.0.{}", Path("/dev/net/tun")
SET_INTERFACE, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000  # linux/if_tun.h
CLONE_NEWNET = 0x40000000
OWN = ["--net", "--uts", "--pid", "--mount"]  # namespaces
Started = subprocess.Popen[bytes]
INHERITED = ("PATH", "HOME", "LANG", "TMPDIR", "LD_LIBRARY_PATH")


def missing() -> str:
    """Why there can be no hosts here; empty if there can."""
    if not sys.platform.startswith("linux") or os.geteuid():
        return "namespaces and addresses take root on Linux"
    if not TUN.exists() or not all(map(shutil.which, ("ip", "unshare", "nsenter", "mount"))):
        return f"there is no {TUN}, or no program ip, unshare, nsenter or mount"
    failed = subprocess.run(["unshare", *OWN, "--fork", "true"]).returncode
    return "namespaces are not allowed here" if failed else ""


class Network:
    """A router that may lose and delay packets, closed with `stack`.

    Attributes:
        cut: pairs (from, to) of addresses between which every packet is lost; nobody is told.
        delay_s, loss, late: of each packet, one way; the share of packets that are lost, and of
            those that take twice as long, so that others overtake them.
    """

    def __init__(self, stack: ExitStack) -> None:
        self.cut: set[tuple[str, str]] = set()
        self.delay_s, self.loss, self.late = 0.0, 0.0, 0.0
        self.stack, self._devices = stack, dict[str, int]()
        self._chance, self._loop = random.Random(0), asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        stack.callback(self._loop.call_soon_threadsafe, self._loop.stop)

    def connect(self, pid: int, address: str) -> None:
        """Give the network namespace of a process a device and an address."""
        device, name = os.open(TUN, os.O_RDWR | os.O_NONBLOCK), f"slim{len(self._devices)}"
        asked = struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI)
        fcntl.ioctl(device, SET_INTERFACE, asked)
        subprocess.run(["ip", "link", "set", name, "netns", str(pid)], check=True)
        for line in (f"link set {name} up", f"addr add {address}/24 dev {name}", "link set lo up"):
            subprocess.run(["nsenter", "-t", str(pid), "-n", "ip", *line.split()], check=True)
        self._devices[address] = device
        self._loop.call_soon_threadsafe(self._loop.add_reader, device, self._route, device)

    def _route(self, device: int) -> None:
        try:
            packet = os.read(device, 65_536)
        except OSError:  # its host is gone
            self._loop.remove_reader(device)
            return
        if packet[0] >> 4 == 4:
            pair = socket.inet_ntoa(packet[12:16]), socket.inet_ntoa(packet[16:20])
            if pair not in self.cut and self._chance.random() >= self.loss:
                times = 2 if self._chance.random() < self.late else 1
                self._loop.call_later(times * self.delay_s, self._deliver, pair[1], packet)

    def _deliver(self, address: str, packet: bytes) -> None:
        with suppress(OSError, KeyError):  # nobody has this address any more, or ever had
            os.write(self._devices[address], packet)

    def part(self, one: "Host", other: "Host") -> None:
        """Lose what these two send each other."""
        self.cut |= {(one.address, other.address), (other.address, one.address)}

    def heal(self) -> None:
        """Lose and delay nothing more."""
        self.cut, self.delay_s, self.loss, self.late = set(), 0.0, 0.0, 0.0


class Host:
    """A host, whose first process only waits: without it, all others are gone.

    Args:
        folder: of its own.
        boot: the id of its boot; empty: that of this machine, as a container has.
        told: the environment of what it starts.
    """

    def __init__(
        self,
        network: Network,
        name: str,
        number: int,
        folder: Path,
        boot: str = "",
        told: Mapping[str, str] | None = None,
    ) -> None:
        self.network, self.name, self.folder = network, name, folder
        self.address, self.told = NET.format(number), {**(told or {})}
        (folder / "data").mkdir(parents=True)
        binds = {"hosts": "/etc/hosts", "resolv.conf": "/etc/resolv.conf"}
        if boot:
            binds["boot"] = "/proc/sys/kernel/random/boot_id"
        (folder / "boot").write_text(f"{boot}\n")
        (folder / "resolv.conf").write_text(f"nameserver {NET.format(53)}\n")  # who never answers
        self.knows()
        lines = [f"mount --bind {folder / file} {place}" for file, place in binds.items()]
        lines.append(f"mount -t tmpfs {name} {folder / 'data'}")
        script = " && ".join([*lines, f"hostname {name}", "echo", "exec sleep infinity"])
        line = ["unshare", *OWN, "--fork", "--kill-child", "--mount-proc", "sh", "-c", script]
        self._first = subprocess.Popen(line, stdout=subprocess.PIPE)
        network.stack.callback(self.lose)
        assert self._first.stdout is not None and self._first.stdout.readline()
        (child,) = psutil.Process(self._first.pid).children()
        self.pid = child.pid
        network.connect(self.pid, self.address)

    def knows(self, *others: "Host") -> None:
        """Let it find itself and these by their names, and nobody else."""
        names = [f"{host.address} {host.name}.lab {host.name}\n" for host in (self, *others)]
        (self.folder / "hosts").write_text("".join(["127.0.0.1 localhost\n", *names]))

    def data(self, *parts: str) -> Path:
        """A path in its own file system, as the machine finds it."""
        return Path(f"/proc/{self.pid}/root{self.folder}", "data", *parts)

    def start(self, *given: str, **told: str) -> None:
        """Start the Python of the tests there, which says to `log` what it says."""
        self.execute(sys.executable, *given, **told)

    def execute(self, *line: str, output: int | None = None, **told: str) -> Started:
        """Start a program there."""
        inherited = {key: os.environ[key] for key in INHERITED if key in os.environ}
        own = {"PYTHONPATH": f"{ROOT}:{HERE}", "SLIMSCOPE_DATA_DIR": str(self.folder / "data")}
        with (self.folder / "log").open("ab") as log:
            environment = {**inherited, **own, **self.told, **told}
            said = log if output is None else output
            return subprocess.Popen(
                [*self.entered, *line], env=environment, stdout=said, stderr=log
            )

    @property
    def entered(self) -> list[str]:
        """The beginning of a command line that is carried out there."""
        return ["nsenter", "-t", str(self.pid), *OWN, f"--wd={ROOT}"]

    def processes(self, part: str) -> list[psutil.Process]:
        """Its processes that have this in their command line."""
        space, found = Path(f"/proc/{self.pid}/ns/pid").readlink(), []
        for process in psutil.process_iter():
            with suppress(OSError, psutil.Error):
                inside = Path(f"/proc/{process.pid}/ns/pid").readlink() == space
                found += [process] if inside and part in " ".join(process.cmdline()) else []
        return found

    def connections(self, port: int, other: "Host") -> int:
        """How many connections to a port of this host another one has, as this one believes."""
        far = "".join(f"{int(part):02X}" for part in reversed(other.address.split(".")))
        rows = [line.split() for line in Path(f"/proc/{self.pid}/net/tcp").read_text().splitlines()]
        there = [row for row in rows if row[1].endswith(f":{port:04X}") and row[2].startswith(far)]
        return sum(row[3] == "01" for row in there)  # established

    @contextmanager
    def inside(self) -> Iterator[None]:
        """This thread opens sockets, and starts processes, in the network of the host."""
        libc, there = ctypes.CDLL(None), Path(f"/proc/{self.pid}/ns/net")
        with Path("/proc/thread-self/ns/net").open() as here, there.open() as net:
            assert not libc.setns(net.fileno(), CLONE_NEWNET)
            try:
                yield
            finally:
                assert not libc.setns(here.fileno(), CLONE_NEWNET)

    def lose(self) -> None:
        """As a power cut does: all its processes are gone, and its connections are not closed."""
        self.network.cut |= {(self.address, NET.format(n)) for n in range(1, 8)}
        self._first.kill()
        self._first.wait()
