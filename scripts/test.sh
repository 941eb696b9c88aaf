#!/usr/bin/env bash
# Lint, format, types and tests:
#   bash scripts/test.sh            the default suite
#   bash scripts/test.sh --slow     with the tests that take minutes
#   bash scripts/test.sh --gpu      only the tests that need a CUDA GPU
#   bash scripts/test.sh -k resume  other arguments are passed to pytest
source "$(dirname "${BASH_SOURCE[0]}")/lib/venv.sh"
install_requirements requirements-dev.txt

if [ "${1:-}" = --slow ]; then
    shift
    set -- -m "not gpu" "$@"
elif [ "${1:-}" = --gpu ]; then
    shift
    set -- -m gpu -n 8 "$@"  # each test process needs a share of the GPU's memory
fi
"$python" -m ruff check .
"$python" -m ruff format --check .
"$python" -m mypy
# A test process for each core; each computes on one thread.
"$python" -m pytest -n "$(env -u OMP_NUM_THREADS nproc)" --dist worksteal "$@"
