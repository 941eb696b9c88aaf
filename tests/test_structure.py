"""The promises about the tree: who may import whom, and what must not be in it."""

import ast
import re

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


def test_model_files_import_torch_and_torchvision_only() -> None:
    standard = {"collections", "functools", "math", "typing"}
    for path in (REPOSITORY / "models").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            roots = {module.split(".")[0] for module in modules}
            if path.stem != "__init__":
                assert roots <= standard | {"torch", "torchvision"}, path.name
