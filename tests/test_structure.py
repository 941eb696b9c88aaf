"""The promises about the tree: who may import whom, and what must not be in it."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from conftest import REPOSITORY

import utils

PACKAGES = ("command_line", "runs", "training", "networks", "data", "common")  # of utils, the highest first
SHARED = {  # the modules of utils and detection, by their names
    ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__"): path
    for package in ("utils", "detection")
    for path in (REPOSITORY / package).rglob("*.py")
}
OF_COMMAND_LINES = (
    *REPOSITORY.glob("imagenet*.py"),
    *(REPOSITORY / "detection" / name for name in ("train.py", "options.py")),
    *(REPOSITORY / "utils" / "command_line").glob("*.py"),
    *(REPOSITORY / "scripts").rglob("*.py"),
)
PROJECT = (
    *REPOSITORY.glob("*.py"),
    *(
        path
        for name in ("models", "utils", "detection", "scripts")
        for path in (REPOSITORY / name).rglob("*.py")
    ),
)


def nodes(path: Path) -> Iterator[ast.AST]:
    return ast.walk(ast.parse(path.read_text()))


def imported_by(path: Path) -> set[str]:
    """The modules of utils and detection that a file imports, at its top or within a function."""
    names: set[str] = set()
    for node in nodes(path):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            submodules = {f"{node.module}.{alias.name}" for alias in node.names} & set(SHARED)
            names |= submodules or {node.module or ""}
    return names & set(SHARED)


def test_packages_of_utils_import_downwards_only() -> None:
    assert re.findall(r"^(\w+)  ", utils.__doc__ or "", re.MULTILINE) == list(PACKAGES)
    assert {path.parent.name for path in (REPOSITORY / "utils").glob("*/__init__.py")} == set(PACKAGES)
    assert [path.name for path in (REPOSITORY / "utils").glob("*.py")] == ["__init__.py"]
    for position, package in enumerate(PACKAGES):
        for path in (REPOSITORY / "utils" / package).rglob("*.py"):
            for name in imported_by(path):
                root, _, inner = name.partition(".")
                assert root == "utils", f"{path.name} imports {name}"
                assert inner.split(".")[0] in PACKAGES[position:], f"{package}/{path.name} imports {name}"


def test_no_modules_import_each_other_in_a_circle() -> None:
    left = {name: imported_by(path) for name, path in SHARED.items()}
    while free := [name for name, needed in left.items() if not needed & set(left)]:
        for name in free:
            del left[name]
    assert not left


def test_only_what_defines_or_checks_a_command_line_takes_one() -> None:
    for path in set(PROJECT) - set(OF_COMMAND_LINES):
        found = [
            node
            for node in nodes(path)
            if "Namespace" in (getattr(node, "id", ""), getattr(node, "attr", ""))
        ]
        assert not found, path.name


def changes_args(node: ast.AST) -> bool:
    """Whether code sets an attribute of a variable ``args``."""
    if isinstance(node, ast.Call):
        of = node.args[0] if node.args and getattr(node.func, "id", "") in ("setattr", "delattr") else None
    else:
        changed = isinstance(node, ast.Attribute) and (
            isinstance(node.ctx, ast.Store | ast.Del) or node.attr == "__dict__"
        )
        of = node.value if changed and isinstance(node, ast.Attribute) else None
    return isinstance(of, ast.Name) and of.id == "args"


def test_a_command_line_stays_as_it_was_parsed() -> None:
    """But for the defaults that depend on other flags, which are filled in where these are checked."""
    for path in set(PROJECT) - {REPOSITORY / "utils" / "command_line" / "checks.py"}:
        lines = [getattr(node, "lineno", 0) for node in nodes(path) if changes_args(node)]
        assert not lines, f"{path.name}, lines {lines}"


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
        *(REPOSITORY / "utils").rglob("*.py"),
        *(REPOSITORY / "detection").glob("*.py"),
        *(path for path in (REPOSITORY / "scripts").rglob("*") if path.suffix in (".py", ".sh")),
    ]
    places = defaultdict(list)
    for path in files:
        for run in runs_of_lines(path, 8):
            places[run].append(path.name)
    assert not {names[0]: (names, run) for run, names in places.items() if len(names) > 1}


def test_the_scripts_can_be_read_in_one_go() -> None:
    for path in (*REPOSITORY.glob("imagenet*.py"), REPOSITORY / "detection" / "train.py"):
        assert len(path.read_text().splitlines()) <= 250, path.name


def test_no_function_is_long() -> None:
    for path in (*PROJECT, *(REPOSITORY / "tests").rglob("*.py")):
        for node in nodes(path):
            if isinstance(node, ast.FunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                assert lines <= 60, f"{path.name}: {node.name} has {lines} lines"
