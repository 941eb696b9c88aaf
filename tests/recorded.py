"""A study with recorded runs, as study.py leaves them, without any training."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HEAD = "\t".join(["Learning Rate", "Train Loss", "Valid Loss", "Train Acc.", "Valid Acc."])
COMMIT = "0123456789" * 4
FACTS = {
    "arch": "resnet18",
    "classes": 10,
    "training_images": 1437,
    "processes": 1,
    "parameters": 11_180_000,
    "multiply_adds": 37_000_000,
    "opt_level": "O0",
    "commit": COMMIT,
    "code": "c" * 40,
    "versions": {"python": "3.11.7", "torch": "2.14.1"},
}
ROWS = {"plain": "", "se": "--gate se"}


def write_study(
    path: Path,
    rows: Mapping[str, str] = ROWS,
    seeds: Sequence[int] = (1, 2),
    flags: str = "--epochs 2 --lr 0.2",
    **further: str,
) -> Path:
    """Write a study's file; ``further`` are lines of it, written as they are."""
    content = {
        "data": '"digits"',
        "flags": json.dumps(flags),
        "seeds": str(list(seeds)),
        "baseline": '"plain"',
    }
    lines = [f"{key} = {value}" for key, value in {**content, **further}.items()]
    lines += ["[rows]", *(f"{json.dumps(name)} = {json.dumps(row)}" for name, row in rows.items())]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


def write_record(
    study: Path, row: str, seed: int, *top1: float, flags: str | None = None, **facts: Any
) -> Path:
    """Write a log and its facts as record_run.py does; ``top1`` are validation's by epoch.

    ``flags`` are those of the command; None: as the study of :func:`write_study` says.
    """
    log = study.with_suffix("") / f"{row}-{seed}.log.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"{0.05 / (i + 1)}\t2.0\t1.0\t{value - 10}\t{value}\t" for i, value in enumerate(top1)]
    log.write_text("\n".join([HEAD, *lines]) + "\n")
    own = (
        f"--data /there/digits/ --epochs {len(top1)} --lr 0.2 {ROWS.get(row, '')}" if flags is None else flags
    )
    command = f"imagenet_fast.py {own} --manualSeed {seed} -c {row}-{seed} -j 4 --resume auto"
    content = {"seed": seed, "command": command, **FACTS, **facts}
    log.with_name(f"{row}-{seed}.json").write_text(json.dumps(content))
    return log


def spoil(log: Path, **changes: object) -> None:
    """Change facts of a record; one of None is left out."""
    path = log.with_name(log.name.replace(".log.txt", ".json"))
    facts = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in facts.items() if value is not None}))
