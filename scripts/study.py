"""Run a study: networks that differ in their flags, with the same recipe and several seeds; make its tables.

    python scripts/study.py ablation.toml --jobs 2
    python scripts/study.py ablation.toml --speed
    python scripts/study.py ablation.toml --tables

The file says data, recipe, rows, seeds and baseline (docs/results.md). What is missing is trained; a study
that was stopped goes on where it was, and a run that fails does not stop the others. Each finished run is
recorded in the folder beside the file that has its name, and so are table.md, table.tex and the pictures:
curves.png, and top-1 against parameters, GFLOPs and the time of a step.
"""

import argparse
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from scripts.lib.curves import Group, rendered
from scripts.lib.curves import draw as draw_curves
from scripts.lib.results_study import Results, as_latex, read_results, section
from scripts.lib.study_file import Study, read_study
from scripts.lib.study_networks import check_rows
from scripts.lib.study_runs import Runner, check_code, missing, only_one, remove_halves, start_process
from scripts.lib.study_speed import write_speed
from scripts.lib.study_tradeoff import AXES, points_of
from scripts.lib.study_tradeoff import draw as draw_tradeoff
from utils.command_line import cli
from utils.common.checks import check_libraries
from utils.common.errors import UserError
from utils.common.files import remove_leftovers, write_output
from utils.common.signals import EXIT_CODES
from utils.common.text import plural

RUNS = Path("checkpoints") / "study"


def visible_gpus() -> list[str]:
    """Return the GPUs by the names of CUDA_VISIBLE_DEVICES; none on a machine without."""
    import torch

    if not torch.cuda.is_available():
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(number) for number in range(torch.cuda.device_count())]


def train(study: Study, runs: Path, jobs: int) -> int:
    """Run what is missing; return the exit code: 0, 1 if a run has failed, or that of a signal.

    Raises:
        UserError: a row is none that could run, or the code is none that could be recorded.
    """
    todo = missing(study, runs)
    count = len(study.rows) * len(study.seeds)
    print(f"{study.name}: {plural(count, 'run')}, {count - len(todo)} of them recorded", flush=True)
    if not todo:
        return 0
    remove_halves(study, todo)
    check_code(study)
    check_rows(study)
    runner = Runner(study, todo, jobs, visible_gpus(), start_process, lambda: write_tables(study))
    if number := runner.run():
        print(f"stopped by {signal.Signals(number).name}: the same command goes on", flush=True)
        return EXIT_CODES[signal.Signals(number)] or 1
    if runner.failed:
        names = "; ".join(map(str, runner.failed))
        print(f"failed: {names}. The same command tries them again", file=sys.stderr, flush=True)
    return 1 if runner.failed else 0


def speed(study: Study, rounds: int) -> None:
    """Measure and write the step ratios.

    Raises:
        UserError: no run is recorded, which would say the number of classes.
    """
    from scripts.lib.study_measure import measure_speed  # it takes torch's profilers

    runs = read_results_before_speed(study).runs
    if not runs:
        raise UserError(f"{study.path}: --speed needs a recorded run, which says the number of classes")
    check_rows(study)
    write_speed(study, measure_speed(study, runs[0].facts["classes"], rounds))


def read_results_before_speed(study: Study) -> Results:
    """Read the records without the measured steps, which may be of other rows."""
    from scripts.lib.study_records import read_records

    return Results(study, read_records(study))


def write_tables(study: Study) -> None:
    """Write table.md and table.tex.

    Raises:
        UserError: a record is not of the study, or a file cannot be written.
    """
    results = read_results(study.path)
    for name, text in (("table.md", section(results)), ("table.tex", as_latex(results))):
        write(study.folder / name, text.encode())


def write(path: Path, content: bytes) -> None:
    """Write a file of the study.

    Raises:
        UserError: it cannot be written.
    """
    write_output(path, content, f"cannot write {path}")


def write_pictures(results: Results) -> list[str]:
    """Write the curves, and the trade-off by every cost that is known; return their names."""
    groups = [Group(row, [run.curves for run in runs], "error") for row, runs in results.rows.items() if runs]
    figures = {"curves.png": draw_curves(groups)}
    for axis in AXES:
        if len(points_of(results, axis)) > 1:
            figures[f"tradeoff_{axis}.png"] = draw_tradeoff(results, axis)
    for name, figure in figures.items():
        write(results.study.folder / name, rendered(figure))
    return list(figures)


def create_parser() -> cli.Parser:
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=cli.name_of_file, metavar="STUDY.toml", help="the study's file")
    text = "runs at once (default: %(default)s)"
    parser.add_argument("--jobs", type=cli.count_of, default=1, metavar="N", help=text)
    text = "where the data is on this machine, a folder of the name that the study says"
    parser.add_argument("--data", type=cli.name_of_file, metavar="PATH", help=text)
    text = f"folder of the runs' checkpoints (default: {RUNS}/NAME of the study)"
    parser.add_argument("--runs", type=Path, metavar="DIR", help=text)
    only = parser.add_mutually_exclusive_group()
    text = "train nothing: write the tables and pictures of what is recorded"
    only.add_argument("--tables", action="store_true", help=text)
    text = "after the training measure each row's step against the baseline's; nothing else may run meanwhile"
    only.add_argument("--speed", action="store_true", help=text)
    text = "how often each step is measured (default: %(default)s)"
    parser.add_argument("--rounds", type=cli.count_of, default=7, metavar="N", help=text)
    return parser


def with_data(study: Study, data: str | None) -> Study:
    """Return the study with its data elsewhere.

    Raises:
        UserError: it has another name.
    """
    if data and Path(data).name != Path(study.data).name:
        raise UserError(f"--data {data}: {study.path} says {study.data}: give a folder of that name")
    return replace(study, data=data) if data else study


def main() -> None:
    args = create_parser().parse_args()
    check_libraries("tables and pictures", "matplotlib", "scipy")
    study = with_data(read_study(Path(args.study)), args.data)
    with only_one(study):
        remove_leftovers(study.folder)
        code = 0 if args.tables else train(study, args.runs or RUNS / study.name, args.jobs)
        if args.speed and code == 0:
            speed(study, args.rounds)
        finish(study)
    sys.exit(code)


def finish(study: Study) -> None:
    """Write what can be made of the records, and say what was written."""
    results = read_results(study.path)
    if not results.runs:
        print(f"no run of {study.name} is recorded yet")
        return
    write_tables(study)
    names = ["table.md", "table.tex", *write_pictures(results)]
    print(f"wrote {study.folder}/: {', '.join(names)}")


if __name__ == "__main__":
    cli.run(main)
