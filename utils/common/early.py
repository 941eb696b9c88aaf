"""What a signal does while a script imports torch, which takes seconds: the scripts import this module first.

Without it Ctrl-C would end in a traceback, and SIGUSR1, by which a scheduler says that time is nearly up,
would count as a failure. Nothing has begun that could be lost. SIGTERM ends a process anyway.
"""

import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import NoReturn

from utils.common.launch import is_first_of_machine
from utils.common.signals import EXIT_CODES

_SCRIPTS = (Path(__file__).parents[2], Path(__file__).parents[2] / "detection")


def _say(number: int) -> int:
    """Print what ends the process; return its exit code."""
    name = signal.Signals(number).name
    if is_first_of_machine():
        os.write(2, f"stopped by {name} before training began\n".encode())  # print may be interrupted itself
    return EXIT_CODES[signal.Signals(number)]


def _end(number: int, _: FrameType | None) -> NoReturn:
    os._exit(_say(number))  # an exception within an import may be taken for a missing module


def _stop(number: int, _: FrameType | None) -> NoReturn:
    sys.exit(_say(number))


def is_set() -> bool:
    """Return whether a script has imported this module first."""
    return signal.getsignal(signal.SIGUSR1) is _end


def begin_script() -> None:
    """From here on a signal unwinds what the script has begun, until the training loop notes signals."""
    if is_set():
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGUSR1, _stop)


if Path(getattr(sys.modules["__main__"], "__file__", "") or "").resolve().parent in _SCRIPTS:
    for _number in (signal.SIGINT, signal.SIGUSR1):
        if signal.getsignal(_number) is not signal.SIG_IGN:  # as under nohup, or in a shell's background
            signal.signal(_number, _end)
