"""A parser and argument types whose errors are one clear line."""

import argparse
import difflib
import errno
import io
import math
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from utils.common import early
from utils.common.distributed import tell_mistake
from utils.common.errors import SHARED_MEMORY, UserError
from utils.common.launch import is_first_of_machine, is_main_process, leave_quietly
from utils.common.text import shown

# The published README has such lines.
_BLANK = (
    "note: a blank argument is ignored; if a line of the command ends in '\\' and a blank, the command ends "
    "there, and its next line is not read"
)

# What torch says when /dev/shm is full, of a data worker too that ends with a bus error.
_SHARED_MEMORY = ("unable to allocate shared memory", "workers are out of shared memory", "unable to mmap")


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that reports an error in one line, without the usage of fifty flags.

    Flags are not to be abbreviated. Blank arguments that are no value of a flag are ignored, with a note. Of
    several processes only rank 0 speaks.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})
        self._noted = False  # a command line may be parsed twice
        self._recorded: list[argparse._ArgumentGroup] = []

    def add_recorded_group(self, title: str) -> argparse._ArgumentGroup:
        """Add a group of arguments that decide what is computed; a checkpoint records them."""
        self._recorded.append(self.add_argument_group(title))
        return self._recorded[-1]

    def recorded(self, args: argparse.Namespace) -> dict[str, Any]:
        """Return the arguments that decide what is computed, by name."""
        names = [action.dest for group in self._recorded for action in group._group_actions]
        return {name: getattr(args, name) for name in names}

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        words = list(sys.argv[1:] if args is None else args)
        kept = self._without_blanks(words)
        if len(kept) < len(words) and not self._noted and is_main_process():
            print(_BLANK, file=sys.stderr, flush=True)
            self._noted = True
        return super().parse_args(kept, namespace)

    def _without_blanks(self, words: Sequence[str]) -> list[str]:
        """Leave out blank words where a flag may stand; a flag's value may be blank.

        An empty file name is not left out: it is a variable of the shell that was not set.
        """
        kept, values = [], 0  # that the flag before still needs
        for word in words:
            is_name = not word and self._get_positional_actions()
            if not (word.strip() or values or is_name):
                continue
            flag = self._option_string_actions.get(word)
            values = max(values - 1, 0)
            if flag:  # "+" takes one word and perhaps more
                values = flag.nargs if isinstance(flag.nargs, int) else int(flag.nargs in (None, "+"))
            kept.append(word)
        return kept

    def error(self, message: str) -> NoReturn:
        unknown = (message.removeprefix("unrecognized arguments: ").split() or [""])[0]
        near = difflib.get_close_matches(unknown, self._option_string_actions, n=1, cutoff=0.7)
        hint = f"did you mean {near[0]}?" if "unrecognized" in message and near else "see --help"
        self.exit(2, f"{self.prog}: error: {message} ({hint})\n")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        """End the process; of several each machine's first one speaks, and the others learn of a mistake."""
        if message and is_first_of_machine():
            self._print_message(message, sys.stderr)
        if status and message:
            tell_mistake(message.removeprefix(f"{self.prog}: error: "))  # perhaps of one machine only
        sys.exit(status)

    def print_help(self, file: Any = None) -> None:
        if is_main_process():
            super().print_help(file)


def run(main: Callable[[], None]) -> NoReturn:
    """Call a script's ``main``; end with one line on stderr and exit code 2 on a UserError."""
    early.begin_script()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of files need not be text
            stream.reconfigure(errors="backslashreplace")
    try:
        main()
    except UserError as error:
        _complain(str(error))
        sys.exit(2)
    except KeyboardInterrupt:
        if is_main_process():
            print("\ninterrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # whoever read the output has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except (RuntimeError, ValueError, OSError) as error:
        if (line := _explain(error)) is None:
            raise
        if isinstance(error, ValueError) and not is_first_of_machine():
            leave_quietly()  # all processes have met it
        _complain(line)
        sys.exit(2)
    sys.exit(0)


def _complain(message: str) -> None:
    print(f"{Path(sys.argv[0]).name}: error: {shown(' '.join(message.split()))}", file=sys.stderr)


def _explain(error: BaseException | None) -> str | None:
    """Return a line for errors that are not the program's fault, such as a killed data worker; else None."""
    while error is not None:
        text = str(error)
        first = text.splitlines()[0].strip() if text else ""
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return f"{error.strerror}: {error.filename or 'standard output'}; --resume auto goes on"
        full = "DataLoader worker" in text and "No space left on device" in text  # workers write nothing else
        if full or any(sign in text for sign in _SHARED_MEMORY):
            return SHARED_MEMORY
        if "Expected more than 1 value per channel when training" in text:
            return (
                "batch norm has only one value per channel to learn from: give a --train-batch of at least 2 "
                "for each process or GPU, or a larger --img-size (not enough for SK, BAM and SRM nets)"
            )
        if text.startswith("DataLoader worker"):
            return (
                f"a process that decodes images was killed ({first}); if memory is short, give fewer "
                "--workers; go on with --resume auto"
            )
        if "out of memory" in text or "not enough memory" in text or "can't allocate memory" in text:
            return f"too little memory ({first[:120]}): lower --train-batch (--accum-steps) or --test-batch"
        if "does not have a deterministic implementation" in text:
            return f"--deterministic: on this device torch has no such {first.split()[0]}; leave the flag out"
        error = error.__context__
    return None


def number(kind: type, accepts: Callable[[float], bool], description: str) -> Callable[[str], Any]:
    """An argparse type: an ``int`` or ``float`` that passes a test."""

    def parse(text: str) -> Any:
        with suppress(ValueError, OverflowError):
            value = kind(text)
            if math.isfinite(value) and accepts(value):
                return value
        raise argparse.ArgumentTypeError(f"must be {description}, not '{text}'")

    return parse


count_of = number(int, lambda value: value >= 1, "a whole number of at least 1")
whole = number(int, lambda value: value >= 0, "a whole number of at least 0")
positive = number(float, lambda value: value > 0, "a number above 0")
non_negative = number(float, lambda value: value >= 0, "a number of at least 0")
fraction = number(float, lambda value: 0 <= value <= 1, "a number from 0 to 1")
below_one = number(float, lambda value: 0 <= value < 1, "a number from 0 to below 1")
seed = number(int, lambda value: 0 <= value < 2**63, "a whole number from 0 to below 2^63")


def name_of_file(text: str) -> str:
    """An argparse type: a path, not empty as that of an unset shell variable."""
    if not text:
        raise argparse.ArgumentTypeError("is empty")
    return text
