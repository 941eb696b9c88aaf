"""The promises about the tree: who may import whom, and what must not be in it."""

import ast
import re
from collections import defaultdict
from pathlib import Path

from conftest import REPOSITORY

import utils


def test_utils_import_downwards_only() -> None:
    assert utils.__doc__ is not None
    order = re.findall(r"\w+", utils.__doc__.split("\n\n")[1])
    files = {path.stem: path for path in (REPOSITORY / "utils").glob("*.py") if path.stem != "__init__"}
    assert set(order) == set(files)
    for position, name in enumerate(order):
        for node in ast.walk(ast.parse(files[name].read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("utils."):
                imported = (node.module or "").removeprefix("utils.")
                assert imported in order[position + 1 :], f"{name} imports {imported}"


def test_nothing_is_installed() -> None:
    """Packages called models and utils, without the scripts, would take the place of others' packages."""
    tables = re.findall(r"^\[+(\w+)", (REPOSITORY / "pyproject.toml").read_text(), re.MULTILINE)
    assert set(tables) == {"tool"}


def test_model_files_import_torch_and_torchvision_only() -> None:
    standard = {"collections", "functools", "math", "typing"}
    for path in (REPOSITORY / "models").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            roots = {module.split(".")[0] for module in modules}
            if path.stem != "__init__":
                assert roots <= standard | {"torch", "torchvision"}, path.name


def runs_of_lines(path: Path, length: int) -> set[tuple[str, ...]]:
    """All runs of so many lines, without indentation and empty lines."""
    lines = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    return {tuple(lines[i : i + length]) for i in range(len(lines) - length + 1)}


def test_no_eight_lines_stand_twice() -> None:
    """In the scripts and what they share; files of models/ do repeat others: each works when copied alone."""
    files = [
        *REPOSITORY.glob("*.py"),
        *(REPOSITORY / "utils").glob("*.py"),
        *(REPOSITORY / "detection").glob("*.py"),
        *(path for path in (REPOSITORY / "scripts").rglob("*") if path.suffix in (".py", ".sh")),
    ]
    places = defaultdict(list)
    for path in files:
        for run in runs_of_lines(path, 8):
            places[run].append(path.name)
    assert not {names[0]: (names, run) for run, names in places.items() if len(names) > 1}


def test_the_scripts_can_be_read_in_one_go() -> None:
    for path in REPOSITORY.glob("imagenet*.py"):
        assert len(path.read_text().splitlines()) <= 200, path.name
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 80, f"{path.name}: {node.name}"
