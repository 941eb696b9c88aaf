"""What the environment says of a job before its processes have joined. Imports no torch."""

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import NoReturn

from utils.common.errors import UserError

_PLACE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
SECONDS_TO_SPEAK = 10.0  # more than processes differ in the time of their start


def is_main_process() -> bool:
    """Return whether this is rank 0 or the only process, according to the environment."""
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"


def is_first_of_machine() -> bool:
    """Return whether this is the process that says, on its machine, what ends the job."""
    return os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")) == "0"


def leave_quietly() -> NoReturn:
    """End a process later than the first of its machine, which prints the message.

    Launchers stop all processes of a machine after the first end.
    """
    time.sleep(SECONDS_TO_SPEAK)
    sys.exit(2)


def refuse_several_processes(script: str) -> None:
    """Refuse to run a one-process script in several processes.

    Raises:
        UserError: a launcher has started several.
    """
    if whole_number({"WORLD_SIZE": "1", **os.environ}, "WORLD_SIZE") == 1:
        return
    if not is_first_of_machine():
        leave_quietly()
    raise UserError(f"{script} is one process for all GPUs: start it with python, or use imagenet_fast.py")


def launch_environment(environment: Mapping[str, str], local_rank: int | None) -> dict[str, str]:
    """Return RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT, however the job was started.

    torchrun and torch.distributed.launch set them; under srun they follow from SLURM's variables; without a
    launcher there is one process.

    Args:
        environment: ``os.environ``.
        local_rank: what the launcher gave as ``--local-rank``, if it did.

    Raises:
        UserError: SLURM's host names cannot be read, or variables are missing or no numbers.
    """
    if "WORLD_SIZE" in environment and "RANK" in environment:
        given = dict(environment) if local_rank is None else {"LOCAL_RANK": str(local_rank), **environment}
        if "LOCAL_RANK" not in given:
            raise UserError("RANK is set but LOCAL_RANK is not: start with torchrun, or give --local-rank")
        missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in given]
        if missing and given["WORLD_SIZE"] != "1":
            raise UserError(f"WORLD_SIZE is set but {' and '.join(missing)} not: start with torchrun")
        return {name: given[name] for name in _PLACE if name in given}
    slurm = {"SLURM_STEP_NUM_TASKS": "1", "SLURM_JOB_ID": "0", **environment}
    if whole_number(slurm, "SLURM_STEP_NUM_TASKS") > 1:  # set by srun, not in the batch script itself
        job = whole_number(slurm, "SLURM_JOB_ID")
        return {
            "RANK": environment["SLURM_PROCID"],
            "WORLD_SIZE": environment["SLURM_STEP_NUM_TASKS"],
            "LOCAL_RANK": environment["SLURM_LOCALID"],
            "MASTER_ADDR": environment.get("MASTER_ADDR") or _first_slurm_host(environment),
            "MASTER_PORT": environment.get("MASTER_PORT") or str(20000 + job % 20000),
        }
    return {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}


def _first_slurm_host(environment: Mapping[str, str]) -> str:
    hosts = environment["SLURM_STEP_NODELIST"]
    if "[" not in hosts:
        return hosts.split(",")[0]
    command = ["scontrol", "show", "hostnames", hosts]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError):
        remedy = "set MASTER_ADDR to its first host"
        raise UserError(f"cannot expand SLURM's host list {hosts}: {remedy}") from None


def whole_number(environment: Mapping[str, str], name: str) -> int:
    try:
        return int(environment[name])
    except ValueError:
        raise UserError(f"{name}={environment[name]} in the environment is not a number") from None
