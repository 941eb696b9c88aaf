#!/usr/bin/env bash
# Trains a small net of every family with the same recipe and several seeds, and writes the logs to pretrain_log/;
# scripts/results.py makes the table from them. An interrupted study goes on where it stopped; runs with a log there are
# not repeated.
#
#   bash scripts/study.sh                                     the embedded digits at 32 px: days on 2 cores
#   bash scripts/study.sh FOLDER sge_resnet18 se_resnet18     train/ and val/ of a folder at 64 px, these nets only
#
# EPOCHS (20) and SEEDS ("1 2 3") may be set before the command.
source "$(dirname "${BASH_SOURCE[0]}")/lib/venv.sh"

data=${1:-digits}
shift || true
epochs=${EPOCHS:-20}
seeds=${SEEDS:-1 2 3}

# Behind the published stem the last maps of 32 px have one position. ShuffleNet and MobileNet have other stems.
small="--stem small"
declare -A nets=(
    [resnet18]="-a old_resnet18 $small" [resnet50_d]="-a resnet50_d $small" [se_resnet18]="-a se_resnet18 $small"
    [cbam_resnet18]="-a cbam_resnet18 $small" [bam_resnet18]="-a bam_resnet18 $small"
    [gc_resnet18]="-a gc_resnet18 $small" [sge_resnet18]="-a sge_resnet18 $small" [srm_resnet18]="-a srm_resnet18 $small"
    [sk_resnet50]="-a sk_resnet50 $small" [sknet50]="-a sknet50 $small" [oct_resnet26]="-a oct_resnet26 $small"
    [ws_resnet18]="-a ws_resnet18 $small" [ws_resnet18_el2]="-a ws_resnet18 $small --nowd-conv --el2 --mineps 1e-3"
    [shufflenetv1_1x]="-a shufflenetv1_1x" [shufflenetv2_1x]="-a shufflenetv2_1x" [mobilenetv1]="-a mobilenetv1"
    [ws_densenet201]="-a ws_densenet201 $small"
)
order=(resnet18 se_resnet18 cbam_resnet18 bam_resnet18 gc_resnet18 sge_resnet18 srm_resnet18 ws_resnet18 ws_resnet18_el2
    oct_resnet26 shufflenetv1_1x shufflenetv2_1x mobilenetv1 sk_resnet50 resnet50_d sknet50 ws_densenet201)
[ $# -gt 0 ] && order=("$@")
for name in "${order[@]}"; do
    if [ -z "${nets[$name]:-}" ]; then
        echo "error: no net of the study is called '$name'; there are $(printf '%s\n' "${!nets[@]}" | sort | xargs)" >&2
        exit 2
    fi
done

# Digits are small and differ from their mirror images: crops of at least half the image, no flips.
if [ "$data" = digits ]; then
    images=(--img-size 32 --scale 0.5 1 --hflip 0)
else
    images=(--img-size 64 --scale 0.25 1)
fi
recipe=(--epochs "$epochs" --train-batch 64 --lr 0.2 --cos --per-iter --warmup 1 --nowd-bn)

install_requirements requirements.txt
study=$(basename "$data")_small_stem # the recorded studies without it have the published stems
for seed in $seeds; do
    for name in "${order[@]}"; do
        run=checkpoints/study/$study/$name-$seed
        if [ -e "pretrain_log/$study/$name-$seed.log.txt" ]; then
            echo "$study, $name, seed $seed: is in pretrain_log/"
            continue
        fi
        echo "$study, $name, seed $seed:"
        read -ra net <<<"${nets[$name]}"
        "$python" imagenet_fast.py "${net[@]}" --data "$data" "${images[@]}" "${recipe[@]}" --manualSeed "$seed" \
            -j 1 -c "$run" --resume auto
        "$python" scripts/record_run.py "$run" --study "$study"
    done
done
