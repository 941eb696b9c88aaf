#!/usr/bin/env bash
# Attention ResNets of the published classification table.
#
#   bash scripts/train_attention.sh /path/to/imagenet1k sge_resnet50 [further flags]
#
# Expected top-1 / top-5 on ImageNet-1k (published README, old runs with decay on biases; not measured here):
#   old_resnet50 76.38/92.91   se_resnet50 77.18/93.67   sk_resnet50 77.54/93.70   bam_resnet50 76.90/93.40
#   cbam_resnet50 77.63/93.66  sge_resnet50 77.58/93.66
#   old_resnet101 78.20/93.91  se_resnet101 78.47/94.10  sk_resnet101 78.79/94.27  bam_resnet101 78.22/94.02
#   cbam_resnet101 78.35/94.06 sge_resnet101 78.80/94.37
# Hardware: 8 GPUs, 32 images on each (GPUS=4: give --train-batch 64).
set -euo pipefail
data=${1:?usage: bash scripts/train_attention.sh DATA ARCH [FLAGS]} arch=${2:-sge_resnet50}

"${PYTHON:-python}" -m torch.distributed.run --standalone --nproc_per_node="${GPUS:-8}" imagenet_fast.py \
    -a "$arch" --data "$data" --epochs 100 --schedule 30 60 90 --wd 1e-4 --gamma 0.1 \
    -c "checkpoints/imagenet/$arch" --train-batch 32 --opt-level O0 --wd-all --label-smoothing 0. --warmup 0 \
    "${@:3}"
