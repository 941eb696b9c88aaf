"""The recorded runs of a study: NAME-SEED.log.txt and NAME-SEED.json for the row NAME, and their checks.

A run is of a study if it is exactly what one of its rows says: the same data, flags, code and versions.
"""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.lib.curves import RunCurves, read_curves
from scripts.lib.study_file import Study
from utils.common.errors import UserError
from utils.common.text import plural

LOG = ".log.txt"
SPEED = "speed.json"  # of the measured steps, beside the records
FACTS: Mapping[str, type] = {
    "arch": str, "seed": int, "classes": int, "training_images": int, "processes": int, "parameters": int,
    "multiply_adds": int, "command": str, "commit": str, "code": str, "versions": dict,
}  # fmt: skip
COMMIT = re.compile(r"[0-9a-f]{40}")
# Flags that do not change what a run computes, or that the facts say.
OF_THE_RUN = frozenset({
    "-a", "--arch", "--manualSeed", "-c", "--checkpoint", "-j", "--workers", "--resume", "--overwrite",
    "--save-every", "--keep", "-p", "--print-freq", "--print-always", "--no-cache", "--test-batch",
})  # fmt: skip
# What all runs of a study have in common, beside the flags of their rows.
_SHARED = ("classes", "training_images", "processes", "opt_level", "code")


@dataclass(frozen=True)
class Recorded:
    """A finished run: its log, and the content of the .json beside it."""

    log: Path
    row: str
    facts: Mapping[str, Any]
    recipe: Mapping[str, str]
    curves: RunCurves

    @property
    def seed(self) -> int:
        return int(self.facts["seed"])

    def last(self, column: str) -> float:
        """Return the last epoch's value."""
        return float(self.curves.columns[column][-1])


def read_recipe(command: str) -> dict[str, str]:
    """Return a command's script and the values of its flags, without those of ``OF_THE_RUN``."""
    recipe = {"script": ""}
    flag = "script"
    for word in shlex.split(command):
        if re.match(r"--?[A-Za-z]", word):
            flag, _, value = word.partition("=")
            flag = "--data" if flag == "-d" else flag
            recipe[flag] = value
        else:
            recipe[flag] = f"{recipe[flag]} {word}".strip()
    for name in {"script", "--data"} & set(recipe):
        recipe[name] = Path(recipe[name]).name  # on another machine the folder may be elsewhere
    return {name: value for name, value in recipe.items() if name not in OF_THE_RUN}


def recipe_of(study: Study, row: str) -> dict[str, str]:
    """Return what :func:`read_recipe` returns of the commands of a row."""
    return read_recipe(shlex.join([study.script, *study.words(row)]))


def read_run(log: Path) -> Recorded:
    """Read a log of a study and the .json beside it.

    Raises:
        UserError: one of them is missing or damaged, or does not say enough to trace the result back.
    """
    name = log.name.removesuffix(LOG)
    path = log.with_name(f"{name}.json")
    try:
        facts = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{log}: there is no {path.name} beside it: record it by record_run.py") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    for fact, kind in FACTS.items():
        if not isinstance(facts, dict) or not isinstance(facts.get(fact), kind):
            raise UserError(f"{path}: it does not say its {fact}: record the run by record_run.py")
    if not COMMIT.fullmatch(facts["commit"]):
        raise UserError(f"{path}: its commit '{facts['commit']}' names no code that others could run")
    row, _, seed = name.rpartition("-")
    if not row or seed != str(facts["seed"]):
        raise UserError(f"{log}: it must be called NAME-{facts['seed']}{LOG}, by its seed")
    try:
        recipe = read_recipe(facts["command"])
    except ValueError as error:
        raise UserError(f"{path}: its command is none of a shell ({error})") from None
    return _check_log(Recorded(log, row, facts, recipe, read_curves(log, name)))


def _check_log(run: Recorded) -> Recorded:
    """Return the run after checking its log.

    Raises:
        UserError: the log is not of a classification, or has other epochs than its command says.
    """
    if "Valid Acc." not in run.curves.columns:
        raise UserError(f"{run.log}: no log of a classification: a study compares top-1")
    epochs = run.recipe.get("--epochs", "")
    if epochs and epochs != str(run.curves.epochs):
        raise UserError(f"{run.log}: {plural(run.curves.epochs, 'epoch')}, where its command says {epochs}")
    return run


def check_row(study: Study, row: str, facts: Mapping[str, Any], where: str) -> None:
    """Check that a run is what its row says.

    Args:
        study: the study.
        row: the row.
        facts: ``arch``, ``command``, ``seed`` and ``processes`` of the run.
        where: what names the run, for messages.

    Raises:
        UserError: it is another, or the study has no such row or seed.
    """
    if row not in study.rows:
        raise UserError(f"{where}: {study.path} has no row '{row}'")
    if facts["seed"] not in study.seeds:
        raise UserError(f"{where}: {study.path} has no seed {facts['seed']}")
    has = {**read_recipe(facts["command"]), "-a": facts["arch"], "processes": facts["processes"]}
    wanted = {**recipe_of(study, row), "-a": arch_of(study, row), "processes": study.processes}
    for name in {**wanted, **has}:
        if has.get(name) != wanted.get(name):
            what = f"{name} {_text(has.get(name))}, where row '{row}' of {study.path} says"
            raise UserError(f"{where}: the run has {what} {_text(wanted.get(name))}")


def _text(value: object) -> str:
    """Say the value of a flag."""
    return "(none)" if value is None else str(value) or "(given)"


def arch_of(study: Study, row: str) -> str:
    """Return the architecture that the flags of a row name, or the scripts' default."""
    arch = "resnet18"
    words = iter(study.words(row))
    for word in words:
        flag, equal, value = word.partition("=")
        if flag in ("-a", "--arch"):
            arch = value if equal else next(words, "")
    return arch


def check_alike(one: Mapping[str, Any], other: Mapping[str, Any], names: tuple[str, str]) -> None:
    """Check that two runs have the same data, code and versions, and where they have one the same gate file.

    Raises:
        UserError: they differ; ``names`` are theirs, for the message.
    """
    for name in _SHARED:
        if one.get(name) != other.get(name):
            differ = (
                f"{name.replace('_', ' ')} {_said(one, name)} in the one, {_said(other, name)} in the other"
            )
            raise UserError(f"{names[0]} and {names[1]} cannot be compared: {differ}")
    for name in {**one["versions"], **other["versions"]}:
        has = [of["versions"].get(name, "none") for of in (one, other)]
        if has[0] != has[1]:
            differ = f"{name} {has[0]} in the one, {has[1]} in the other"
            raise UserError(f"{names[0]} and {names[1]} cannot be compared: {differ}")


def _said(facts: Mapping[str, Any], name: str) -> str:
    text = str(facts.get(name, "(unknown)"))
    return f"{text[:10]} (commit {facts['commit'][:10]})" if name == "code" else text


def read_records(study: Study) -> dict[str, list[Recorded]]:
    """Return the recorded runs of every row, in the study's order of rows and seeds; rows may have none.

    Raises:
        UserError: a run cannot be read, is not what its row says, or cannot be compared with the others.
    """
    logs = sorted(study.folder.glob(f"*{LOG}"))
    for path in sorted(study.folder.glob("*.json")):
        if path.name != SPEED and path.with_name(f"{path.stem}{LOG}") not in logs:
            raise UserError(f"{path}: there is no {path.stem}{LOG} beside it: record it by record_run.py")
    runs = [read_run(log) for log in logs]
    for run in runs:
        check_row(study, run.row, run.facts, str(run.log))
        check_alike(runs[0].facts, run.facts, (str(runs[0].log), str(run.log)))
    _check_sizes_and_gate_files(runs)
    rows = {row: [run for run in runs if run.row == row] for row in study.rows}
    for row in rows.values():
        row.sort(key=lambda run: study.seeds.index(run.seed))
    return rows


def _check_sizes_and_gate_files(runs: Sequence[Recorded]) -> None:
    """Check that runs of a row are of the same network, and those with the same gate file of one content.

    Raises:
        UserError: they are not.
    """
    seen: dict[tuple[str, str], tuple[Recorded, object]] = {}
    for run in runs:
        keys = {("parameters", run.row): run.facts["parameters"]}
        keys["multiply-adds", run.row] = run.facts["multiply_adds"]
        if file := run.recipe.get("--gate-file", "").rpartition(":")[0]:
            keys["content of", file] = run.facts.get("gate_code", "unknown")
        for (what, of), value in keys.items():
            first, had = seen.setdefault((what, of), (run, value))
            if had != value:
                differ = f"{what} {of}: {had} in the one, {value} in the other"
                raise UserError(f"{first.log} and {run.log} cannot be compared: {differ}")
