"""The tables of README.md are what the code and the data give."""

from pathlib import Path

import pytest
from conftest import REPOSITORY, Run, assert_one_line_error

from scripts.results import markdown, replaced
from utils.errors import UserError

SCRIPT = "scripts/results.py"


def test_the_tables_of_the_readme_are_up_to_date(run: Run) -> None:
    result = run("--check", script=SCRIPT)
    assert result.returncode == 0, result.stdout + result.stderr


def test_a_stale_table_is_noticed(run: Run, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    stale = (REPOSITORY / "README.md").read_text().replace("| 25.56M | 4.127 |", "| 25.56M | 4.128 |")
    readme.write_text(stale)
    result = run("--check", "--readme", readme, script=SCRIPT)
    assert result.returncode == 1
    assert "stale" in result.stdout
    assert readme.read_text() == stale
    assert_one_line_error(run("--readme", "nowhere", script=SCRIPT), "--readme nowhere")


def test_tables_stand_between_their_markers() -> None:
    text = "before\n<!-- results x -->\nold\n<!-- end x -->\nafter\n"
    table = markdown(iter([("a", "b"), ("1", "2")]))
    expected = "before\n<!-- results x -->\n\n| a | b |\n| --- | --- |\n| 1 | 2 |\n\n<!-- end x -->\nafter\n"
    assert replaced(text, "x", table) == expected
    assert replaced(expected, "x", table) == expected
    with pytest.raises(UserError, match="<!-- end y -->"):
        replaced(text, "y", table)
