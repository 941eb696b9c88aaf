"""What the processes of a job tell each other before they work together.

They do so through the job's store, which needs no more than that all reach the first machine: before gloo or
NCCL connect them, and before any exchange whose number depends on the command line.
"""

import json
import os
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from ipaddress import ip_address
from typing import NamedTuple

from torch import distributed as dist

from utils.common.launch import SECONDS_TO_SPEAK

LISTED = 3  # differences that a message names


class Told(NamedTuple):
    """What a process says of itself.

    Args:
        host: the name of its machine.
        facts: what must be the same on all processes, as text, by what the user calls it.
        mistake: why it cannot take part; empty if it can.
        loopback: the address of its machine's name, if no other machine can reach that; else empty.
    """

    host: str
    facts: Mapping[str, str]
    mistake: str = ""
    loopback: str = ""


def disagreement(told: Sequence[Told]) -> str:
    """Return a line that says in what a process differs from rank 0, or what it refuses; empty if nothing.

    Args:
        told: what each process says, by rank.
    """
    first = told[0]
    for rank, of in enumerate(told):
        if differing := _differing(first, of):
            return f"{_differences(differing, first, rank, of)}: all processes of a job must be started alike"
    for rank, of in enumerate(told):
        if of.mistake:
            return f"rank {rank} ({of.host}): {of.mistake}" if rank else of.mistake
    if len({of.host for of in told}) > 1:
        for rank, of in enumerate(told):
            if of.loopback:
                return f"rank {rank}: {_unreachable(of)}"
    return ""


def _differing(first: Told, other: Told) -> list[str]:
    """What differs; a process with a mistake may not have come to all."""
    names = [*first.facts, *(name for name in other.facts if name not in first.facts)]
    both = [name for name in names if name in first.facts and name in other.facts]
    comparable = both if first.mistake or other.mistake else names
    return [name for name in comparable if first.facts.get(name) != other.facts.get(name)]


def _differences(names: Sequence[str], first: Told, rank: int, other: Told) -> str:
    here, there = (of.facts.get(names[0], "absent") for of in (first, other))
    text = f"{names[0]} is {there} on rank {rank} ({other.host}) and {here} on rank 0 ({first.host})"
    if len(names) == 1:
        return text
    more = ", ".join(names[1:LISTED]) + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")
    return f"{text}; {more} {'differs' if len(names) == 2 else 'differ'} too"


def meet(store: dist.Store, rank: int, size: int, told: Told) -> str:
    """Let rank 0 compare what all processes say; return its verdict, as :func:`disagreement` does.

    Args:
        store: that of this attempt of the job.
        rank: this process, from 0.
        size: how many there are.
        told: what this process says.

    Raises:
        RuntimeError: another process does not come within the time-out of the store.
    """
    store.set(f"told/{rank}", json.dumps(told))
    if rank == 0:
        everyone = [Told(*json.loads(store.get(f"told/{other}"))) for other in range(size)]
        store.set("verdict", json.dumps(disagreement(everyone)))
    verdict = json.loads(store.get("verdict"))
    store.set(f"heard/{rank}", "yes")
    if rank == 0 and verdict:  # the store may be this process's, and end with it
        with suppress(RuntimeError):
            store.wait([f"heard/{other}" for other in range(size)], timedelta(seconds=SECONDS_TO_SPEAK))
    return verdict


def loopback_address() -> str:
    """Return the address by which gloo would tell other machines of this one, if they cannot reach it.

    Gloo takes the address of the machine's own name, unless ``GLOO_SOCKET_IFNAME`` names an interface. That
    is 127.0.1.1 where /etc/hosts says so, as Debian's does. Empty if other machines can use the address.
    """
    if os.environ.get("GLOO_SOCKET_IFNAME"):
        return ""
    try:
        address = socket.getaddrinfo(socket.gethostname(), None, type=socket.SOCK_STREAM)[0][4][0]
    except OSError:
        return "no address"
    return str(address) if ip_address(str(address).partition("%")[0]).is_loopback else ""


def _unreachable(of: Told) -> str:
    what = f"the name of its machine, {of.host}, leads to {of.loopback}, where other machines do not reach it"
    remedy = "set GLOO_SOCKET_IFNAME there to the interface that they reach (`ip -brief address` lists them)"
    return f"{what}: {remedy}, or correct /etc/hosts"
