"""How the processes of a job find each other, also after torchrun has restarted them.

torchrun restarts the processes but not the store through which they tell each other their addresses. Left to
itself a restarted process may find the address of one that was killed and fail to reach it (seen with torch
2.14, gloo).
"""

import time
import uuid
from datetime import timedelta

from torch import distributed as dist

_PAUSE = 0.02  # seconds between two looks into the store


def fresh_store(timeout: timedelta) -> tuple[dist.Store, int, int]:
    """A store that only the processes of this attempt write to, this process's rank, and their number.

    Raises:
        RuntimeError: the others do not come within ``timeout``.
    """
    store, rank, size = next(dist.rendezvous("env://", timeout=timeout))
    deadline = time.monotonic() + timeout.total_seconds()
    attempt = _lead(store, size, deadline) if rank == 0 else _follow(store, rank, deadline)
    return dist.PrefixStore(attempt, store), rank, size


def _lead(store: dist.Store, size: int, deadline: float) -> str:
    """Rank 0 names the attempt, and answers whatever name it finds for a rank until that rank confirms."""
    attempt = uuid.uuid4().hex
    missing = set(range(1, size))
    while missing:
        for rank in sorted(missing):
            if store.check([f"{attempt}/{rank}"]):
                missing.remove(rank)
            elif store.check([f"name/{rank}"]):
                name = store.get(f"name/{rank}").decode()
                store.set(f"answer/{name}", attempt)
        _wait(deadline, f"ranks {sorted(missing)}" if missing else "")
    return attempt


def _follow(store: dist.Store, rank: int, deadline: float) -> str:
    """Any other rank takes a name that no earlier process had, and waits for rank 0's answer to it."""
    name = uuid.uuid4().hex
    store.set(f"name/{rank}", name)
    while not store.check([f"answer/{name}"]):
        _wait(deadline, "rank 0")
    attempt = store.get(f"answer/{name}").decode()
    store.set(f"{attempt}/{rank}", "here")
    return attempt


def _wait(deadline: float, missing: str) -> None:
    if missing and time.monotonic() > deadline:
        raise RuntimeError(f"Timed out waiting for {missing}")
    time.sleep(_PAUSE if missing else 0)
