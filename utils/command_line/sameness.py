"""What must be the same on all processes of a job: flags, the files that they name, versions, the code."""

import argparse
import hashlib
from collections.abc import Mapping
from pathlib import Path

from utils.command_line.cli import Parser
from utils.runs.provenance import commit, sources, versions

# Where a machine keeps its copy of the data, and how many cores it has. The data itself is compared when it
# has been read, and the device by what --device has chosen.
OF_A_MACHINE = ("data", "cache", "workers", "device", "local_rank")

# Files that every process reads may lie in another place on every machine: their content is compared. Those
# that are written only the first process writes.
READ = ("resume", "finetune", "class_list", "real", "backbone", "teacher", "gate_file")


def compared(parser: Parser, args: argparse.Namespace) -> Mapping[str, str]:
    """Return what must be the same on all processes, as text, by what a message calls it.

    Args:
        parser: knows the flags.
        args: the command line.
    """
    flags = {action.option_strings[0]: action.dest for action in parser._actions if action.dest in vars(args)}
    names = {flag: name for flag, name in flags.items() if name not in OF_A_MACHINE}
    given = {flag: _text(getattr(args, name), name) for flag, name in names.items()}
    here = commit()[:10]
    of_commit = f" (commit {here})" if here else ""
    code = {f"the code in {path}": f"{digest}{of_commit}" for path, digest in sources().items()}
    return {"the script": Path(parser.prog).name, **given, **versions(), **code}


def _text(value: object, name: str) -> str:
    if value is None or value is False:
        return "not given"
    if value is True:
        return "given"
    if name not in READ or value == "auto":
        return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    if name == "teacher":  # ARCH[:FILE]
        arch, _, file = str(value).partition(":")
        return f"{arch} of {_content(file)}" if file else arch
    if name == "gate_file":  # FILE:CLASS
        file, _, of = str(value).rpartition(":")
        return f"{of} of {_content(file)}"
    return _content(str(value))


def _content(file: str) -> str:
    """Tell a file by its content; one that is not there is refused where it is read, if all name it."""
    if not Path(file).is_file():
        return f"{file}, which is no file"
    digest = hashlib.blake2b(digest_size=4)
    try:
        with Path(file).open("rb") as opened:
            while block := opened.read(2**20):
                digest.update(block)
    except OSError as error:
        return f"{file} ({error.strerror})"
    return f"a file with digest {digest.hexdigest()}"
