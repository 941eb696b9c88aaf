"""Measuring the training steps of a study's rows, each in turns with the baseline's."""

import argparse
from functools import partial

import torch
from tqdm import tqdm

from scripts.lib import benchmark_measure as measure
from scripts.lib.benchmark_model import Candidate, Network, Settings, create
from scripts.lib.benchmark_report import Result, Table, machine
from scripts.lib.study_file import Study
from scripts.lib.study_networks import build_row, parse_row, spec_of
from scripts.lib.study_speed import Speed, StepRatio
from utils.networks.building import layout


def measure_speed(study: Study, classes: int, rounds: int) -> Speed:
    """Measure every row's step against the baseline's, with the recipe's batch, images and precision.

    Nothing else may run on the machine meanwhile.

    Args:
        study: the study.
        classes: outputs of the networks.
        rounds: how often each pair is measured.

    Raises:
        UserError: a network does not take its images, or the memory is too small.
    """
    device = measure.choose_device("auto", study.threads)
    torch.backends.cudnn.benchmark = True  # as in training
    baseline = _network(study, study.baseline, classes, device)
    repeats = 10 if device.type == "cuda" else 1
    ratios = {study.baseline: StepRatio(1, 1, 1)}
    others = [row for row in study.rows if row != study.baseline]
    for row in tqdm(others, "measuring", unit="row", leave=False, disable=None):
        pair = (baseline, _network(study, row, classes, device))
        turns = [lambda _, net=net: net.milliseconds(repeats) for net in pair]
        times = measure.interleave(turns, rounds, 1, row)
        first, second = (Result(net.name, own) for net, own in zip(pair, times, strict=True))
        one = Table("", "ms/step", [first, second]).ratio(second)
        ratios[row] = StepRatio(*(round(value, 4) for value in (one.median, one.least, one.most)))
    about = machine(device.type, threads=True)
    return Speed(str(baseline.settings), ", ".join(about.values()), rounds, ratios)


def _network(study: Study, row: str, classes: int, device: torch.device) -> Network:
    args = parse_row(study, row)
    spec = spec_of(args)
    batch = args.train_batch
    settings = Settings(batch, spec.img_size, True, *_numbers(args, device), getattr(args, "compile", False))
    return create(Candidate(row, partial(build_row, spec, classes), classes), settings, device)


def _numbers(args: argparse.Namespace, device: torch.device) -> tuple[str, torch.memory_format]:
    """Return the precision of a row's training, as a key of the benchmark's types, and its layout."""
    cuda = device.type == "cuda"
    level = getattr(args, "opt_level", "O0") or ("O2" if cuda else "O0")
    half = getattr(args, "amp_dtype", None) or ("float16" if cuda else "bfloat16")
    precision = "fp32" if level == "O0" else {"float16": "fp16", "bfloat16": "bf16"}[half]
    return precision, layout(getattr(args, "channels_last", False))
