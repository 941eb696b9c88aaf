"""Machines that are none: network namespaces of this one, with names of their own, joined by a cable.

Needs root on Linux, and ``ip``, ``unshare`` and ``nsenter`` (iproute2, util-linux). Files are shared, as on a
cluster with a common file system, but for /etc/hosts.
"""

import ctypes
import fcntl
import heapq
import os
import random
import select
import shutil
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

NAMES = ("node0", "node1")
ADDRESSES = ("10.77.0.1", "10.77.0.2")
_TUN, _NO_PACKET_INFORMATION, _TUNSETIFF = 1, 0x1000, 0x400454CA  # linux/if_tun.h


def skip_unless_possible() -> None:
    """Skip the test where there can be no namespaces, and say why."""
    if sys.platform != "linux" or os.geteuid():
        pytest.skip("network namespaces need Linux and root")
    if missing := [name for name in ("ip", "unshare", "nsenter") if shutil.which(name) is None]:
        pytest.skip(f"no {' and '.join(missing)} here")
    tried = subprocess.run(["unshare", "--net", "--uts", "--mount", "true"], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"no namespaces here: {tried.stderr.strip()}")


class Node:
    """A machine: a process that keeps its namespaces.

    Args:
        number: 0 or 1.
        folder: for its /etc/hosts.
    """

    def __init__(self, number: int, folder: Path) -> None:
        self.name, self.device = NAMES[number], f"lan{number}"
        self.hosts = folder / f"hosts-{self.name}"
        self.name_resolves_to(ADDRESSES[number])
        unshared = ["unshare", "--net", "--uts", "--mount", "sh", "-c", "echo ready; exec sleep infinity"]
        self.keeper = subprocess.Popen(unshared, stdout=subprocess.PIPE)
        assert self.keeper.stdout is not None
        assert self.keeper.stdout.readline() == b"ready\n"
        self.do("hostname", self.name)
        self.do("mount", "--bind", str(self.hosts), "/etc/hosts")
        self.do("ip", "link", "set", "lo", "up")

    def name_resolves_to(self, address: str) -> None:
        """Write its /etc/hosts; ``address`` is what it takes for its own."""
        others = [f"{a} {n}\n" for a, n in zip(ADDRESSES, NAMES, strict=True) if n != self.name]
        self.hosts.write_text(f"127.0.0.1 localhost\n{address} {self.name}\n{''.join(others)}")

    def within(self, *command: str) -> list[str]:
        """The command line that runs a command on this machine."""
        return ["nsenter", "--target", str(self.keeper.pid), "--net", "--uts", "--mount", *command]

    def do(self, *command: str) -> None:
        """Run a command on this machine and wait for it."""
        subprocess.run(self.within(*command), check=True, capture_output=True)

    def address(self) -> None:
        """Give the interface its address."""
        self.do("ip", "addr", "add", f"{ADDRESSES[NAMES.index(self.name)]}/24", "dev", self.device)
        self.do("ip", "link", "set", self.device, "up")

    def pull_cable(self) -> None:
        self.do("ip", "link", "set", self.device, "down")

    def kill_processes(self) -> None:
        """Kill all that runs on this machine; it stays, and with it the cable and the other's address."""
        mine = Path(f"/proc/{self.keeper.pid}/ns/net").readlink()
        for path in Path("/proc").glob("[0-9]*/ns/net"):
            try:
                if path.readlink() == mine and int(path.parts[2]) != self.keeper.pid:
                    os.kill(int(path.parts[2]), 9)
            except OSError:  # ended meanwhile
                continue

    def end(self) -> None:
        """End this machine, with its namespaces."""
        self.kill_processes()
        self.keeper.kill()
        self.keeper.wait()


class Pair:
    """Two machines that a cable joins.

    Args:
        folder: for their /etc/hosts.
        delay: of every packet, in seconds.
        loss: the share of the packets that are lost.
    """

    def __init__(self, folder: Path, delay: float = 0.0, loss: float = 0.0) -> None:
        self.nodes = [Node(number, folder) for number in range(2)]
        self.relay: Relay | None = None
        if delay or loss:
            self.relay = Relay(self.nodes, delay, loss)
        else:
            one, other = self.nodes
            ends = [["netns", str(node.keeper.pid), "name", node.device] for node in (one, other)]
            words = ["ip", "link", "add", ends[0][3], *ends[0][:2], "type", "veth", "peer", *ends[1][2:]]
            subprocess.run([*words, *ends[1][:2]], check=True, capture_output=True)
        for node in self.nodes:
            node.address()

    def __enter__(self) -> list[Node]:
        return self.nodes

    def __exit__(self, *_: object) -> None:
        if self.relay:
            self.relay.stop()
        for node in self.nodes:
            node.end()


class Relay:
    """A cable that carries packets late, and loses some; ``tc qdisc add ... netem`` needs a kernel module.

    Args:
        nodes: the machines at its ends.
        delay: of every packet, in seconds.
        loss: the share of the packets that are lost.
    """

    def __init__(self, nodes: Sequence[Node], delay: float, loss: float) -> None:
        self.delay, self.loss, self.lost = delay, loss, 0
        self.stopped = threading.Event()
        self.ends: list[int] = []
        opener = threading.Thread(target=self._open, args=(nodes,))  # only its namespace changes
        opener.start()
        opener.join()
        assert len(self.ends) == len(nodes)
        self.thread = threading.Thread(target=self._carry)
        self.thread.start()

    def _open(self, nodes: Sequence[Node]) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        for node in nodes:
            with Path(f"/proc/{node.keeper.pid}/ns/net").open() as space:
                assert libc.setns(space.fileno(), 0) == 0
            end = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
            request = struct.pack("16sH22x", node.device.encode(), _TUN | _NO_PACKET_INFORMATION)
            fcntl.ioctl(end, _TUNSETIFF, request)
            self.ends.append(end)

    def _carry(self) -> None:
        other = dict(zip(self.ends, self.ends[::-1], strict=True))
        draw = random.Random(0)
        waiting: list[tuple[float, int, int, bytes]] = []
        count = 0
        while not self.stopped.is_set():
            patience = max(0.0, waiting[0][0] - time.monotonic()) if waiting else 0.1
            for end in select.select(self.ends, [], [], min(patience, 0.1))[0]:
                packet, count = os.read(end, 65536), count + 1
                if draw.random() < self.loss:
                    self.lost += 1
                else:
                    heapq.heappush(waiting, (time.monotonic() + self.delay, count, other[end], packet))
            while waiting and waiting[0][0] <= time.monotonic():
                _, _, end, packet = heapq.heappop(waiting)
                os.write(end, packet)

    def stop(self) -> None:
        self.stopped.set()
        self.thread.join()
        for end in self.ends:
            os.close(end)
