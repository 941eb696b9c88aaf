#!/usr/bin/env python
"""Some steps of a network without batch norm by the project's Trainer; rank 0 saves the weights.

Started by tests/test_distributed.py, in one and in several processes.
"""

import argparse
from collections.abc import Collection
from pathlib import Path

import torch
from torch import Tensor, nn

from utils.common import distributed
from utils.common.randomness import derive_seed
from utils.data.loading import Reading, training_loader
from utils.data.sampling import Position
from utils.data.splits import open_data
from utils.data.transforms import TrainTransform
from utils.training import ahead
from utils.training.classification import Classification
from utils.training.ema import create_average
from utils.training.engine import Trainer
from utils.training.losses import LabelSmoothing
from utils.training.mixing import MixedBatch
from utils.training.optim import WeightDecay, create_optimizer, decaying_kinds
from utils.training.schedule import Schedule


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data")
    parser.add_argument("out", type=Path)
    parser.add_argument("--train-batch", type=int, required=True)
    parser.add_argument("--parts", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--wrap-anew", action="store_true", help="as a resumed run does, before every epoch")
    parser.add_argument("--fail", type=int, help="a rank that raises an error")
    parser.add_argument("--bad", type=int, help="a rank whose loss of each epoch's second step is not finite")
    parser.add_argument("--ahead", type=int, default=1, help="steps that the host does not wait for")
    parser.add_argument("--local-rank", type=int)
    args = parser.parse_args()
    kinds = decaying_kinds(wd_all=False, nowd_bn=False, nowd_fc=False, nowd_conv=True)
    decay = WeightDecay(1e-3, kinds, lam=1e-3, shift=1e-2)
    ahead.LOOK_SECONDS = 1e9  # also on a slow machine
    with distributed.start("cpu", args.local_rank) as ranks:
        print("hello")
        if args.fail == ranks.rank:
            raise RuntimeError(f"trouble on rank {ranks.rank}")
        torch.manual_seed(0)
        net = small_net()
        split = open_data(args.data, evaluate=False).train
        assert split is not None
        transform = TrainTransform(24, auto_augment="ta", random_erase=0.5)
        reading = Reading(max_bad=0.01)
        loader = training_loader(split, transform, args.train_batch, 1, reading, ranks, parts=args.parts)
        optimizer = create_optimizer(net, decay, lr=0.1, momentum=0.9, nesterov=True)
        average = create_average(net, 0.9, {})
        model = ranks.wrap(net)
        for epoch in range(args.epochs):
            if args.wrap_anew:
                model = ranks.wrap(net)
            task = Spoiled(LabelSmoothing(0.1, 3))
            trainer = Trainer(model, optimizer, task, Schedule(0.1, 2), 1, ranks)
            trainer.accumulate, trainer.clip, trainer.average = args.parts, 1.0, average
            trainer.skip_nan, trainer.ahead = True, args.ahead
            task.bad = {derive_seed(1, "mix", epoch, 1, args.bad)} if args.bad is not None else set()
            for _ in trainer.epoch(loader, Position(epoch)):
                pass
        if ranks.main:
            assert average is not None
            state = {**net.state_dict(), "loss": torch.tensor(trainer.trained.loss), **average.state_dict()}
            torch.save(state, args.out)


class Spoiled(Classification):
    """The usual task; the images of the batches with the seeds ``bad`` become nan."""

    bad: Collection[int] = ()

    def prepare(self, images: Tensor, targets: Tensor, seed: int) -> MixedBatch:
        return super().prepare(images * float("nan") if seed in self.bad else images, targets, seed)


def small_net() -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (3, 16, 16, 16):
        layers += [nn.Conv2d(channels, 16, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 3))


if __name__ == "__main__":
    main()
