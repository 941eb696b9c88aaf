#!/usr/bin/env bash
# SGE-ResNet-18 learns the embedded handwritten digits, then its best checkpoint is evaluated. No download but pip's.
source "$(dirname "${BASH_SOURCE[0]}")/lib/venv.sh"
install_requirements requirements.txt

run=checkpoints/demo
net=(-a sge_resnet18 --data digits --img-size 32)
# Digits are small and have a left and a right: crops of at least half the image, no flips.
"$python" imagenet.py "${net[@]}" --scale 0.5 1 --hflip 0 --epochs 10 --schedule 7 9 --train-batch 64 --lr 0.05 \
    --manualSeed 1 -c "$run" --overwrite
echo
echo "evaluating $run/model_best.pth.tar"
"$python" imagenet.py "${net[@]}" -e --resume "$run/model_best.pth.tar"
