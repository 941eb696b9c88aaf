#!/usr/bin/env python
"""Three steps of a network without batch norm by the project's Trainer; rank 0 saves the weights.

Started by tests/test_distributed.py, in one and in several processes.
"""

import argparse
from pathlib import Path

import torch
from torch import nn

from utils import distributed
from utils.data import open_data, train_transform, training_loader
from utils.engine import Trainer
from utils.schedule import Schedule


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data")
    parser.add_argument("out", type=Path)
    parser.add_argument("--train-batch", type=int, required=True)
    parser.add_argument("--parts", type=int, default=1)
    parser.add_argument("--fail", type=int, help="a rank that raises an error")
    parser.add_argument("--local-rank", type=int)
    args = parser.parse_args()
    args.__dict__.update(img_size=24, hflip=0.5, auto_augment="ta", random_erase=0.5, workers=0)
    with distributed.start("cpu", args.local_rank) as ranks:
        print("hello")
        if args.fail == ranks.rank:
            raise RuntimeError(f"trouble on rank {ranks.rank}")
        torch.manual_seed(0)
        layers = [
            nn.Conv2d(3, 8, 3, 2),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, 2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(200, 3),
        ]
        net = nn.Sequential(*layers)
        split = open_data(args.data, evaluate=False).train
        assert split is not None
        transform = train_transform(args, (0.08, 1.0))
        loader = training_loader(split, transform, args, 1, ranks, parts=args.parts)
        optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=1e-3)
        criterion = nn.CrossEntropyLoss()
        trainer = Trainer(
            ranks.wrap(net), optimizer, criterion, Schedule(0.1, 1), 1, ranks, accumulate=args.parts
        )
        trained, _ = trainer.epoch(loader, 0)
        if ranks.main:
            torch.save({**net.state_dict(), "loss": torch.tensor(trained.loss)}, args.out)


if __name__ == "__main__":
    main()
