"""The measured training step of each row of a study, as a multiple of the baseline's."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from scripts.lib.study_file import Study
from scripts.lib.study_records import SPEED
from utils.common.errors import UserError
from utils.common.files import write_output


class StepRatio(NamedTuple):
    """The time of a row's step divided by that of the baseline's, round by round."""

    median: float
    least: float
    most: float


@dataclass(frozen=True)
class Speed:
    """What was measured, and on what."""

    settings: str  # what a step computes
    machine: str
    rounds: int
    ratios: Mapping[str, StepRatio]  # by row

    @property
    def caption(self) -> str:
        """Say what the column is."""
        spread = max((one.most - one.least for one in self.ratios.values()), default=0.0)
        return (
            f"Step ratio: the time of a step ({self.settings}; forward and backward pass, no optimizer) "
            f"divided by the baseline's, the median of {self.rounds} rounds in turns, whose ratios span "
            f"{spread:.2f} at most; {self.machine}."
        )


def read_speed(study: Study) -> Speed | None:
    """Read what was measured; None if nothing was.

    Raises:
        UserError: the file is damaged, or rows have had other flags when they were measured.
    """
    path = study.folder / SPEED
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text())
        ratios = {row: StepRatio(*one["ratio"]) for row, one in content["rows"].items()}
        flags = {row: one["flags"] for row, one in content["rows"].items()}
        speed = Speed(content["settings"], content["machine"], int(content["rounds"]), ratios)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: cannot be read ({error}): measure again with --speed") from None
    for row, measured in flags.items():
        if row not in study.rows or measured != _flags(study, row):
            raise UserError(f"{path}: row '{row}' was measured with other flags: measure again with --speed")
    return speed


def write_speed(study: Study, speed: Speed) -> None:
    """Write what was measured.

    Raises:
        UserError: it cannot be written.
    """
    rows = {row: {"flags": _flags(study, row), "ratio": ratio} for row, ratio in speed.ratios.items()}
    content: dict[str, Any] = {"settings": speed.settings, "machine": speed.machine, "rounds": speed.rounds}
    text = json.dumps({**content, "rows": rows}, indent=1) + "\n"
    path = study.folder / SPEED
    write_output(path, text.encode(), f"cannot write {path}")


def _flags(study: Study, row: str) -> list[str]:
    """Return the flags of a row, the data by its name: on another machine its folder may be elsewhere."""
    return list(replace(study, data=Path(study.data).name).words(row))
