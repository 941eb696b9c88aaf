#!/usr/bin/env bash
# Runs on one GPU what tests and tuning on CPUs cannot show: the GPU tests, then the times for docs/performance.md, the most
# important first. Goes on after a failure, and ends within 9 minutes; what was not reached is named and runs by its name.
#
#   bash scripts/gpu_check.sh                             all parts; results in gpu_check/
#   bash scripts/gpu_check.sh step-O2-32 optimizer        these parts only, added to the results there
#   bash scripts/gpu_check.sh --device cpu --tiny         rehearse without a GPU, with small networks
#
# OUT (gpu_check), MINUTES (9; on a CPU 60) and PYTHON (python3) may be set before the command. Nothing is installed: Python
# needs torch, torchvision, tensorboardX and tqdm, for the tests pytest and pytest-xdist. Results: results.json and tables.md,
# and beside them what each part printed.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit

python=${PYTHON:-python3}
out=${OUT:-gpu_check}
networks=(se_resnet50 eca_resnet50 gc_resnet50 srm_resnet50 bam_resnet50 cbam_resnet50 sge_resnet50 sk_resnet50 ws_resnet50)
baseline=resnet50
small=32 large=128  # images of a batch
size=() rounds=(--rounds 5) images=(--images 8192)
tests=(-m pytest -m gpu -n 8 -q)
device=cuda precision=fp16 minutes=9 patience=1
chosen=()
while [ $# -gt 0 ]; do
    case $1 in
        --device)
            shift
            device=${1:-}
            ;;
        --tiny)
            networks=(se_resnet18 sge_resnet18) baseline=resnet18
            small=2 large=4
            size=(--img-size 64) rounds=(--rounds 1 --warmup 0) images=(--images 64)
            tests=(-m pytest -m gpu -q --collect-only)
            ;;
        *) chosen+=("$1") ;;
    esac
    shift
done
case $device in
    cuda) ;;
    cpu) precision=fp32 minutes=60 patience=10 ;; # half is slow there
    *) echo "error: --device must be cuda or cpu, not '$device'" >&2 && exit 2 ;;
esac
minutes=${MINUTES:-$minutes}
end=$((SECONDS + 60 * minutes))

failed=() left=()

part() { # NAME SECONDS COMMAND ...: run it for so long at most
    local name=$1 limit=$((patience * $2)) code
    shift 2
    [[ " ${chosen[*]} " == *" $name "* ]] || return 0
    [ $((end - SECONDS)) -lt "$limit" ] && limit=$((end - SECONDS))
    if [ "$limit" -lt 10 ]; then
        left+=("$name")
        return
    fi
    echo "== $name (at most $limit s)"
    timeout -k 5 "$limit" "$@" 2>&1 | tee "$out/$name.txt"
    code=${PIPESTATUS[0]}
    if [ "$code" -ne 0 ]; then
        failed+=("$name")
        [ "$code" -eq 124 ] && echo "== $name was stopped after $limit s" || echo "== $name failed (exit code $code)"
    fi
}

measure() { # NAME SECONDS KIND FLAG ...: one of benchmark.py's subcommands, with its results in a file
    part "$1" "$2" "$python" scripts/benchmark.py "${@:3}" "${rounds[@]}" --json "$out/$1.json"
}

model=(model "${networks[@]}" --baseline "$baseline" --precision "$precision" --device "$device" "${size[@]}")
step=(step "$baseline" --channels-last --device "$device" "${size[@]}")

compile() { # NAME SECONDS FLAG ...: compile every network, four at a time, into the cache of torch.compile
    part "$1" "$2" xargs -P 4 -I{} "$python" scripts/benchmark.py model {} --baseline {} --precision "$precision" \
        --device "$device" "${size[@]}" "${@:3}" --compile --rounds 1 --warmup 0 \
        < <(printf '%s\n' "$baseline" "${networks[@]}")
}

all_parts() {
    part tests 200 "$python" "${tests[@]}"
    measure channels-last-$large 80 "${model[@]}" --batch $large --channels-last
    measure step-O2-$large 40 "${step[@]}" --batch $large --opt-level O2
    measure step-O2-$small 40 "${step[@]}" --batch $small --opt-level O2
    measure optimizer 30 optimizer --arch "ws_$baseline" --device "$device"
    compile compile-channels-last-$large 180 --batch $large --channels-last
    measure compiled-channels-last-$large 90 "${model[@]}" --batch $large --channels-last --compile
    measure step-O1-$large 40 "${step[@]}" --batch $large --opt-level O1
    measure step-O1-$small 40 "${step[@]}" --batch $small --opt-level O1
    measure channels-last-$small 60 "${model[@]}" --batch $small --channels-last
    measure contiguous-$large 100 "${model[@]}" --batch $large
    measure contiguous-$small 60 "${model[@]}" --batch $small
    measure loader 60 loader --synthetic "${images[@]}"
    measure decode 40 decode --synthetic "${images[@]}"
    compile compile-channels-last-$small 180 --batch $small --channels-last
    measure compiled-channels-last-$small 90 "${model[@]}" --batch $small --channels-last --compile
    compile compile-contiguous-$large 180 --batch $large
    measure compiled-contiguous-$large 90 "${model[@]}" --batch $large --compile
    compile compile-contiguous-$small 180 --batch $small
    measure compiled-contiguous-$small 90 "${model[@]}" --batch $small --compile
}

mapfile -t known < <(part() { echo "$1"; } && all_parts)
[ ${#chosen[@]} -gt 0 ] || chosen=("${known[@]}")
for name in "${chosen[@]}"; do
    if [[ " ${known[*]} " != *" $name "* ]]; then
        echo "error: no part is called '$name'; there are ${known[*]}" >&2
        exit 2
    fi
done
mkdir -p "$out" || exit 2
all_parts
"$python" -m scripts.lib.gpu_tables "$out" || failed+=(tables)
[ ${#left[@]} -eq 0 ] || echo "not reached in $minutes minutes: ${left[*]}"
[ ${#failed[@]} -eq 0 ] || echo "failed: ${failed[*]}"
[ $((${#left[@]} + ${#failed[@]})) -eq 0 ]
