"""The tables of README.md are what the code and the data give."""

import shutil
from pathlib import Path

from conftest import REPOSITORY, Run, assert_one_line_error

SCRIPT = "scripts/results.py"


def test_the_tables_of_the_readme_are_up_to_date(run: Run) -> None:
    result = run("--check", script=SCRIPT)
    assert result.returncode == 0, result.stdout + result.stderr


def test_a_stale_table_is_noticed_and_rewritten(run: Run, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    shutil.copy(REPOSITORY / "README.md", readme)
    whole = readme.read_text()
    readme.write_text(whole.replace("| 25.56M | 4.127 |", "| 25.56M | 4.128 |"))
    stale = run("--check", "--readme", readme, script=SCRIPT)
    assert stale.returncode == 1
    assert "stale" in stale.stdout
    assert run("--readme", readme, script=SCRIPT).returncode == 0
    assert readme.read_text() == whole
    readme.write_text(whole.replace("<!-- end detection -->", ""))
    assert_one_line_error(run("--readme", readme, script=SCRIPT), "<!-- end detection -->")
    assert_one_line_error(run("--readme", "nowhere", script=SCRIPT), "--readme nowhere")
