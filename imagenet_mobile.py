#!/usr/bin/env python
"""Train or evaluate a small ImageNet network: imagenet_fast.py with the recipe of small networks.

torchrun --nproc_per_node=8 imagenet_mobile.py -a shufflenetv2_1x --data /path/to/imagenet --epochs 300 \\
    --train-batch 128 --wd 4e-5 --nowd-bn --opt-level O0 -c checkpoints/shufflenetv2_1x
torchrun --nproc_per_node=2 imagenet_mobile.py -a shufflenetv2_1x --data /path/to/imagenet -e --resume FILE

Without --schedule the rate follows a cosine after the warm-up; both change with every step (--no-per-iter:
with every epoch). All flags are those of imagenet_fast.py.
"""

import utils.common.early  # noqa: F401  # before torch: signals in the first second

# isort: split
from types import MappingProxyType

import imagenet_fast
from utils.command_line import cli

DEFAULTS = MappingProxyType(
    {"epochs": 120, "test_batch": 125, "per_iter": True, "cosine": True, "mineps": 1e-8, "lam": 4e-5}
)


def main() -> None:
    imagenet_fast.main(__doc__, DEFAULTS)


if __name__ == "__main__":
    cli.run(main)
