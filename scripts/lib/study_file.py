"""A study as a TOML file: one recipe on one data set, rows that differ in their flags, and seeds."""

import difflib
import importlib
import itertools
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from utils.common.errors import UserError

SCRIPTS = ("imagenet.py", "imagenet_fast.py", "imagenet_mobile.py")
# Flags that a study sets itself for each run, and those that train nothing or do not begin at the start.
SET_BY_STUDY = frozenset({
    "-d", "--data", "--manualSeed", "-c", "--checkpoint", "-j", "--workers", "--resume", "--overwrite",
    "--keep", "-e", "--evaluate", "--dry-run", "--start-epoch", "--fresh-optimizer",
})  # fmt: skip
_KEYS: Mapping[str, type] = MappingProxyType({
    "script": str, "data": str, "flags": str, "rows": dict, "grid": list, "seeds": list, "baseline": str,
    "threads": int, "processes": int,
})  # fmt: skip
_MEANING = MappingProxyType({str: "text", dict: "a table", list: "a list", int: "a whole number"})
_NAME = re.compile(r"\w[\w.+-]*", re.ASCII)  # of a row; the files of its runs begin with it
_GATE_FLAGS = MappingProxyType(
    {"arch": "-a", "at": "--gate-at", "stages": "--gate-stages", "start": "--gate-start"}
)


@dataclass(frozen=True)
class Study:
    """What a study consists of.

    Args:
        path: its file; the logs of its runs are in the folder beside it that has its name.
        script: the training script.
        data: what ``--data`` takes.
        flags: the recipe, the same for all rows.
        rows: the flags of each row by its name, in the order of the table.
        seeds: each row is trained once with each of them.
        baseline: the row that the others are compared with.
        threads: of the CPU for each run, because the last bits of a result depend on their number.
        processes: of each run.
    """

    path: Path
    script: str
    data: str
    flags: tuple[str, ...]
    rows: Mapping[str, tuple[str, ...]]
    seeds: tuple[int, ...]
    baseline: str
    threads: int = 1
    processes: int = 1

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def folder(self) -> Path:
        """Where the logs are, and all that is made from them."""
        return self.path.with_suffix("")

    def words(self, row: str) -> tuple[str, ...]:
        """Return the flags of a row's runs, without those that every run sets for itself."""
        return ("--data", self.data, *self.flags, *self.rows[row])


def read_study(path: Path) -> Study:
    """Read a study's file.

    Raises:
        UserError: it cannot be read, or does not say what a study needs.
    """
    if path.suffix != ".toml":
        raise UserError(f"{path}: a study is a .toml file")
    content = _load(path)
    if unknown := sorted(set(content) - set(_KEYS)):
        near = difflib.get_close_matches(unknown[0], _KEYS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(_KEYS)}"
        raise UserError(f"{path}: a study has no '{unknown[0]}'; {hint}")
    for key, kind in _KEYS.items():
        if key in content and (not isinstance(content[key], kind) or isinstance(content[key], bool)):
            raise UserError(f"{path}: {key} must be {_MEANING[kind]}, not {content[key]!r}")
    if missing := [key for key in ("data", "seeds", "baseline") if not content.get(key)]:
        raise UserError(f"{path}: it does not say {missing[0]}")
    return _checked(path, content)


def _load(path: Path) -> dict[str, Any]:
    toml = _toml_reader(path)
    try:
        return toml.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path}: it is no TOML ({error})") from None


def _toml_reader(path: Path) -> Any:
    """Return the standard library's reader, which Python 3.10 has not; tomli is the same for it."""
    for name in ("tomllib", "tomli"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise UserError(f"{path}: Python 3.10 reads TOML with tomli only: pip install tomli, or use Python 3.11")


def _checked(path: Path, content: Mapping[str, Any]) -> Study:
    rows = _rows_of(path, content)
    seeds, script, baseline = content["seeds"], content.get("script", "imagenet_fast.py"), content["baseline"]
    if not all(type(seed) is int and 0 <= seed < 2**63 for seed in seeds) or len(set(seeds)) < len(seeds):
        raise UserError(f"{path}: seeds must be different whole numbers of at least 0, not {seeds}")
    if script not in SCRIPTS:
        raise UserError(f"{path}: script must be one of {', '.join(SCRIPTS)}, not '{script}'")
    if baseline not in rows:
        raise UserError(f"{path}: baseline '{baseline}' is none of its rows: {', '.join(rows)}")
    for key in ("threads", "processes"):
        if content.get(key, 1) < 1:
            raise UserError(f"{path}: {key} must be at least 1, not {content[key]}")
    numbers = {key: content[key] for key in ("threads", "processes") if key in content}
    flags = _flags_of(path, "flags", content.get("flags", ""))
    return Study(path, script, content["data"], flags, rows, tuple(seeds), baseline, **numbers)


def _rows_of(path: Path, content: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Return the flags of all rows by name: first those of ``rows``, then those of each grid."""
    written = list(content.get("rows", {}).items())
    for grid in content.get("grid", []):
        if not isinstance(grid, str):
            raise UserError(
                f"{path}: a grid must be text, such as 'gate=se,sge at=standard,pre', not {grid!r}"
            )
        written += expand(grid, str(path))
    rows: dict[str, tuple[str, ...]] = {}
    for name, flags in written:
        if not _NAME.fullmatch(name):
            raise UserError(f"{path}: a row's name must be of letters, digits and . _ + -, not '{name}'")
        if not isinstance(flags, str):
            raise UserError(f"{path}: row '{name}' must be its flags as text, not {flags!r}")
        if name in rows:
            raise UserError(f"{path}: two rows are called '{name}'")
        rows[name] = _flags_of(path, f"row '{name}'", flags)
    if not rows:
        raise UserError(f"{path}: it has no rows: give a table [rows], or grid")
    return rows


def _flags_of(path: Path, where: str, text: str) -> tuple[str, ...]:
    try:
        words = tuple(shlex.split(text))
    except ValueError as error:
        raise UserError(f"{path}: {where}: no words of a shell ({error})") from None
    for word in words:
        if (flag := word.partition("=")[0]) in SET_BY_STUDY:
            raise UserError(f"{path}: {where}: leave out {flag}: every run of a study gets its own")
    return words


def expand(grid: str, source: str) -> Iterator[tuple[str, str]]:
    """Yield the name and the flags of every combination of a grid's values.

    ``gate=se,sge at=standard,pre stages=4,34`` gives ``se_standard_4`` with the flags ``--gate se --gate-at
    standard --gate-stages 4``, and seven more. ``knob.NAME=VALUES`` are the gate's arguments, ``arch=`` is
    ``-a``, ``at=``, ``stages=`` and ``start=`` are the flags of gates, and any other ``KEY=`` is ``--KEY``.

    Raises:
        UserError: it has another form.
    """
    keys: dict[str, list[str]] = {}
    for word in grid.split():
        key, equal, values = word.partition("=")
        split = values.split(",")
        if not (equal and key and all(split)) or len(set(split)) < len(split) or key in keys:
            raise UserError(f"{source}: grid '{grid}': '{word}' must be KEY=VALUE,VALUE,..., each once")
        if key == "stages" and not re.fullmatch(r"[1-9]+", "".join(split)):
            raise UserError(f"{source}: grid '{grid}': stages are digits without blanks, such as 34")
        keys[key] = split
    if not keys:
        raise UserError(f"{source}: a grid is empty")
    for chosen in itertools.product(*keys.values()):
        yield _name_of(chosen), _combination(dict(zip(keys, chosen, strict=True)))


def _name_of(values: Sequence[str]) -> str:
    return "_".join(re.sub(r"[^\w.+-]+", "-", value, flags=re.ASCII) for value in values)


def _combination(values: Mapping[str, str]) -> str:
    words: list[str] = []
    for key, value in values.items():
        if not key.startswith("knob."):
            words += [_GATE_FLAGS.get(key, f"--{key}"), *(value if key == "stages" else [value])]
    if knobs := [f"{key[5:]}={value}" for key, value in values.items() if key.startswith("knob.")]:
        words += ["--gate-args", *knobs]
    return shlex.join(words)
