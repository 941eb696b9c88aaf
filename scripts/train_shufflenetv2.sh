#!/usr/bin/env bash
# ShuffleNetV2 by the published recipe of small networks.
#
#   bash scripts/train_shufflenetv2.sh /path/to/imagenet1k [further flags]
#
# Expected top-1 / top-5 on ImageNet-1k: 69.64/88.72 (published README; not measured here).
# Hardware: 8 GPUs, 128 images on each, which makes the rate 0.4.
set -euo pipefail
data=${1:?usage: bash scripts/train_shufflenetv2.sh DATA [FLAGS]}

"${PYTHON:-python}" -m torch.distributed.run --standalone --nproc_per_node="${GPUS:-8}" imagenet_mobile.py \
    --cos -a shufflenetv2_1x --data "$data" --epochs 300 --wd 4e-5 --gamma 0.1 \
    -c checkpoints/imagenet/shufflenetv2_1x --train-batch 128 --opt-level O0 --nowd-bn "${@:2}"
