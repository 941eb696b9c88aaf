"""The tables of docs/results.md: runs of one recipe with this code, from the logs of pretrain_log/STUDY/.

scripts/record_run.py writes NAME-SEED.log.txt and NAME-SEED.json there. A NAME is a row of the table. Its
figures are means over the seeds, and those of the last epoch: the best epoch would have been chosen on the
validation images.
"""

import json
import math
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from models import create_model, list_models
from scripts.lib.curves import RunCurves, read_curves
from utils.common.errors import UserError
from utils.common.text import plural
from utils.networks.parts import PartSpec, put_parts

BASELINE = "resnet18"
LOG = ".log.txt"
FACTS = {"arch": str, "seed": int, "classes": int, "training_images": int, "command": str, "commit": str}
COMMIT = re.compile(r"[0-9a-f]{40}")
# Flags that do not change what a run computes, or have a column of their own.
OF_THE_RUN = frozenset({
    "-a", "--arch", "--manualSeed", "-c", "--checkpoint", "-j", "--workers", "--resume", "--overwrite",
    "--save-every", "--keep", "-p", "--print-freq", "--print-always", "--no-cache", "--test-batch",
})  # fmt: skip
# The e-shifted L2 regularizer and the stem count as parts of the net: nets with and without are compared.
OF_THE_NET = frozenset({"--el2", "--mineps", "--lam", "--nowd-conv", "--stem"})


@dataclass(frozen=True)
class Recorded:
    """A finished run: its log, and the content of the .json beside it."""

    log: Path
    net: str
    facts: Mapping[str, Any]
    recipe: Mapping[str, str]
    curves: RunCurves

    def last(self, column: str) -> float:
        """Return the last epoch's value."""
        return float(self.curves.columns[column][-1])

    @property
    def settings(self) -> str:
        """The architecture and the flags of ``OF_THE_NET``."""
        flags = (f"{name} {value}".strip() for name, value in self.recipe.items() if name in OF_THE_NET)
        return " ".join([str(self.facts["arch"]), *flags])


def read_recipe(command: str) -> dict[str, str]:
    """Return a command's script and the values of its flags, without those of ``OF_THE_RUN``."""
    recipe = {"script": ""}
    flag = "script"
    for word in shlex.split(command):
        if re.match(r"--?[A-Za-z]", word):
            flag, _, value = word.partition("=")
            recipe[flag] = value
        else:
            recipe[flag] = f"{recipe[flag]} {word}".strip()
    for name in {"script", "-d", "--data"} & set(recipe):
        recipe[name] = Path(recipe[name]).name  # on another machine the folder may be elsewhere
    return {name: value for name, value in recipe.items() if name not in OF_THE_RUN}


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
    if facts["arch"] not in list_models():
        raise UserError(f"{path}: its architecture '{facts['arch']}' is none of models/")
    net, _, seed = name.rpartition("-")
    if not net or seed != str(facts["seed"]):
        raise UserError(f"{log}: it must be called NAME-{facts['seed']}{LOG}, by its seed")
    try:
        recipe = read_recipe(facts["command"])
    except ValueError as error:
        raise UserError(f"{path}: its command is none of a shell ({error})") from None
    return check_log(Recorded(log, net, facts, recipe, read_curves(log, name)))


def check_log(run: Recorded) -> Recorded:
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


def refuse_others(one: Recorded, other: Recorded, same_net: bool) -> None:
    """Check that two runs of a table differ only in seed and net, or (``same_net``) only in the seed.

    Raises:
        UserError: they differ in something else.
    """
    left, right = comparable(one, same_net), comparable(other, same_net)
    for name in {**left, **right}:
        if left.get(name) != right.get(name):
            what = f"{name} {left.get(name, '(none)')} in the one, {right.get(name, '(none)')} in the other"
            raise UserError(f"{one.log} and {other.log} cannot be compared: {what}")


def comparable(run: Recorded, same_net: bool) -> dict[str, object]:
    """Return what two runs must have in common, by its name in the message."""
    # The learning rate depends on the number of processes, which the command does not say.
    shared: dict[str, object] = {
        "classes:": run.facts["classes"],
        "training images:": run.facts["training_images"],
        "epochs:": run.curves.epochs,
        "highest rate:": float(run.curves.columns["Learning Rate"].max()),
    }
    flags = {name: value or "(given)" for name, value in run.recipe.items()}
    if same_net:
        return {"-a": run.facts["arch"], **flags, **shared}
    return {**{name: value for name, value in flags.items() if name not in OF_THE_NET}, **shared}


def read_study(folder: Path) -> dict[str, list[Recorded]]:
    """Return the runs of a study by net, the baseline first, then in order of name and seed.

    Raises:
        UserError: a run cannot be read, or cannot be compared with the others.
    """
    logs = sorted(folder.glob(f"*{LOG}"))
    for path in sorted(folder.glob("*.json")):
        if path.with_name(f"{path.stem}{LOG}") not in logs:
            raise UserError(f"{path}: there is no {path.stem}{LOG} beside it: record it by record_run.py")
    rows: dict[str, list[Recorded]] = {}
    for run in sorted(map(read_run, logs), key=lambda run: (run.net != BASELINE, run.net, run.facts["seed"])):
        rows.setdefault(run.net, []).append(run)
    runs = [run for row in rows.values() for run in row]
    for run in runs[1:]:
        refuse_others(runs[0], run, same_net=False)
        refuse_others(rows[run.net][0], run, same_net=True)
    return rows


@cache
def parameters(arch: str, classes: int, stem: str | None = None) -> int:
    """Return the number of parameters of a network."""
    with torch.device("meta"):
        net = create_model(arch, num_classes=classes)
        put_parts(net, PartSpec(stem=stem), arch)
    return sum(value.numel() for value in net.parameters())


def with_error(values: Sequence[float], sign: str = "") -> str:
    """Return the mean, of several values with its standard error, of none a dash."""
    if not values:
        return "-"
    error = f" ± {stdev(values) / math.sqrt(len(values)):.2f}" if len(values) > 1 else ""
    return f"{mean(values):{sign}.2f}{error}"


def difference(row: Sequence[Recorded], baseline: Sequence[Recorded]) -> str:
    """Return the difference of validation top-1 to the baseline, paired by seed; missing seeds are noted."""
    of_baseline = {run.facts["seed"]: run.last("Valid Acc.") for run in baseline}
    pairs = [run for run in row if run.facts["seed"] in of_baseline]
    text = with_error([run.last("Valid Acc.") - of_baseline[run.facts["seed"]] for run in pairs], "+")
    return text if len(pairs) in (0, len(row)) else f"{text} ({plural(len(pairs), 'seed')})"


def study(rows: Mapping[str, Sequence[Recorded]]) -> Iterator[Sequence[str]]:
    """Yield the table's head and a row for each net."""
    baseline = rows.get(BASELINE)
    head = ("net", "`-a` and flags", "#P", "epochs", "seeds", "valid top-1 %", "train top-1 %")
    yield (*head, f"valid top-1, difference to {BASELINE}") if baseline else head
    for net, row in rows.items():
        first = row[0]
        net_of = (first.facts["arch"], first.facts["classes"], first.recipe.get("--stem"))
        size = f"{parameters(*net_of) / 1e6:.2f}M"
        top1 = (with_error([run.last(name) for run in row]) for name in ("Valid Acc.", "Train Acc."))
        cells = (net, first.settings, size, str(first.curves.epochs), str(len(row)), *top1)
        if baseline:
            cells = (*cells, "baseline" if net == BASELINE else difference(row, baseline))
        yield cells


def caption(rows: Mapping[str, Sequence[Recorded]]) -> str:
    """Return what all rows have in common: recipe, data, commit, versions."""
    runs = [run for row in rows.values() for run in row]
    recipe, facts = runs[0].recipe, runs[0].facts
    flags = {name: value for name, value in recipe.items() if name not in {"script", *OF_THE_NET}}
    words = [recipe["script"], *(f"{name} {value}".strip() for name, value in flags.items())]
    commits = sorted({run.facts["commit"][:10] for run in runs})
    torches = sorted({str(run.facts.get("versions", {}).get("torch", "unknown")) for run in runs})
    return (
        f"`{' '.join(words)}` with `-a`, the flags of the row and `--manualSeed`; "
        f"{facts['training_images']:,} training images, {facts['classes']} classes; "
        f"commit {', '.join(commits)}; torch {', '.join(torches)}."
    )
