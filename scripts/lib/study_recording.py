"""Recording a finished run of a study: its log, and the facts that its result can be traced back to."""

import functools
import hashlib
import json
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from scripts.lib.study_file import Study
from scripts.lib.study_records import COMMIT, FACTS, LOG, check_row, recipe_of
from utils.common.errors import UserError
from utils.common.files import write_atomically
from utils.networks import checkpoint
from utils.networks.building import NETWORK_FIELDS, build_model, choose_network
from utils.networks.weights import output_count
from utils.runs.folder import LAST

ROOT = Path(__file__).resolve().parents[2]
_CODE = ("models", "utils", "imagenet.py", "imagenet_fast.py", "imagenet_mobile.py")  # what trains a network
_SAVED = ("arch", "seed", "classes", "training_images", "processes", "command", "commit", "versions")


@functools.cache
def code_of(commit: str) -> str:
    """Return a digest of what trains networks at a commit: one of logs or pages only is the same code.

    It is the commit itself where git does not know it.
    """
    words = ["git", "-C", str(ROOT), "rev-parse", *(f"{commit}:{path}" for path in _CODE)]
    try:
        done = subprocess.run(words, capture_output=True, text=True)
    except OSError:  # no git
        return commit
    return hashlib.sha1(done.stdout.encode()).hexdigest() if done.returncode == 0 else commit


def load_run(folder: Path) -> dict[str, Any]:
    """Load the last checkpoint of a run, and check that it says what a record needs.

    Raises:
        UserError: there is none, it is not of this code, or the code was at no commit.
    """
    saved = checkpoint.load(str(folder / LAST), "RUN")
    if missing := [name for name in (*_SAVED, "arguments", "rows") if name not in saved]:
        raise UserError(f"RUN {folder}: its checkpoint does not say its {missing[0]}: not one of this code")
    if not COMMIT.fullmatch(str(saved["commit"])):
        raise UserError(
            f"RUN {folder}: its code is of no commit ({saved['commit'] or 'no git'}): commit it, train again"
        )
    return saved


def facts_of(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a checkpoint says of its run, without the network's size."""
    own = {"gate_code": saved["gate_code"]} if "gate_code" in saved else {}
    level = {"opt_level": saved["arguments"]["opt_level"]} if "opt_level" in saved["arguments"] else {}
    code = {"code": code_of(saved["commit"])}
    return {name: saved[name] for name in _SAVED} | {"classes": len(saved["classes"])} | level | code | own


def record(study: Study, folder: Path) -> Path:
    """Write the log and the facts of a finished run, unless they are there; return the log.

    Args:
        study: its study.
        folder: the run's, named NAME-SEED.

    Raises:
        UserError: the run is not finished, not of the study, or another is recorded there.
    """
    saved = load_run(folder)
    epochs = saved["arguments"].get("epochs")
    if not isinstance(epochs, int) or saved.get("epoch", 0) < epochs:
        done = f"{saved.get('epoch', 0)} of {epochs} epochs are done"
        raise UserError(f"RUN {folder}: {done}; go on with --resume auto first")
    name = folder.resolve().name
    if not re.fullmatch(rf".+-{saved['seed']}", name):
        raise UserError(f"RUN {folder}: the folder's name must end in the seed: NAME-{saved['seed']}")
    facts = facts_of(saved)
    row = name.rpartition("-")[0]
    check_row(study, row, facts, f"RUN {folder}")
    given: dict[str, Any] = dict.fromkeys(NETWORK_FIELDS)
    given["gate_file"] = recipe_of(study, row).get("--gate-file")  # a checkpoint cannot have code run
    spec = choose_network(given, saved, str(folder / LAST), "RUN", quiet=True)
    _, size = build_model(spec, output_count(saved["state_dict"], spec.arch))
    facts |= {"parameters": size.parameters, "multiply_adds": size.multiply_adds}
    log = study.folder / f"{name}{LOG}"
    _write(
        log, {key: facts[key] for key in (*FACTS, "opt_level", "gate_code") if key in facts}, saved["rows"]
    )
    return log


def _write(log: Path, facts: Mapping[str, Any], rows: list[str]) -> None:
    """Write the facts, and then the log, which makes them a record.

    Raises:
        UserError: another run is recorded there, or a file cannot be written.
    """
    text = "".join(f"{row}\n" for row in rows)
    path = log.with_name(f"{log.name.removesuffix(LOG)}.json")
    contents = {path: f"{json.dumps(facts, indent=2)}\n", log: text}
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        if log.exists() and log.read_text() != text:
            raise UserError(f"{log}: another run is recorded there; remove it, or name this one otherwise")
        for file, content in contents.items():
            write_atomically(file, functools.partial(_write_text, content))
    except OSError as error:
        raise UserError(f"cannot write {log}: {error.strerror}") from None


def _write_text(text: str, file: IO[bytes]) -> None:
    file.write(text.encode())
