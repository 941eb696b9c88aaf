#!/usr/bin/env bash
# Weight-standardised small networks with the e-shifted L2 regularizer.
#
#   bash scripts/train_ws_small.sh /path/to/imagenet1k ws_shufflenetv2 1e-8 [further flags]
#
# Expected top-1 on ImageNet-1k (published README; not measured here), architecture and e:
#   ws_shufflenetv1 1e-8: 68.09    ws_shufflenetv2 1e-8: 69.70    ws_mobilenetv1 1e-6: 73.60
# The published README gives no command for them: this is its recipe of small networks with its e-shifted flags.
# Hardware: 8 GPUs, 128 images on each.
set -euo pipefail
usage="usage: bash scripts/train_ws_small.sh DATA ARCH E [FLAGS]"
data=${1:?$usage} arch=${2:?$usage} e=${3:?$usage}

"${PYTHON:-python}" -m torch.distributed.run --standalone --nproc_per_node="${GPUS:-8}" imagenet_mobile.py \
    --cos -a "$arch" --data "$data" --epochs 300 --wd 4e-5 --lam 4e-5 -c "checkpoints/imagenet/es${e}_$arch" \
    --train-batch 128 --opt-level O0 --nowd-bn --nowd-conv --mineps "$e" --el2 "${@:4}"
