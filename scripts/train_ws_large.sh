#!/usr/bin/env bash
# Weight-standardised ResNets, ResNeXts and DenseNet with the e-shifted L2 regularizer.
#
#   bash scripts/train_ws_large.sh /path/to/imagenet1k ws_resnet50 1e-3 [further flags]
#
# Expected top-1 on ImageNet-1k (published README; not measured here), architecture and e:
#   ws_resnet50 1e-3: 76.86    ws_resnet101 1e-6: 78.29    ws_resnext50 1e-3: 77.88   ws_resnext101 1e-3: 78.80
#   ws_densenet201 1e-8: 77.59
# Plain L2 (e 0): ws_resnet50 76.74, ws_resnet101 78.07.
# The published README gives the command of ws_resnet50; that the others used it too is an assumption.
# Hardware: 8 GPUs, 32 images on each.
set -euo pipefail
usage="usage: bash scripts/train_ws_large.sh DATA ARCH E [FLAGS]"
data=${1:?$usage} arch=${2:?$usage} e=${3:?$usage}

"${PYTHON:-python}" -m torch.distributed.run --standalone --nproc_per_node="${GPUS:-8}" imagenet_fast.py \
    -a "$arch" --data "$data" --epochs 100 --schedule 30 60 90 --wd 1e-4 --gamma 0.1 \
    -c "checkpoints/imagenet/es${e}_$arch" --train-batch 32 --opt-level O0 --label-smoothing 0. --warmup 0 \
    --nowd-conv --mineps "$e" --el2 "${@:4}"
