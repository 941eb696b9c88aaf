#!/usr/bin/env bash
# Lint, format, types and tests:
#   bash scripts/test.sh            the default suite
#   bash scripts/test.sh --slow     with the tests that take minutes
#   bash scripts/test.sh --gpu      what needs a CUDA GPU, and nothing else
#   bash scripts/test.sh -k resume  any other argument goes to pytest
source "$(dirname "${BASH_SOURCE[0]}")/lib/venv.sh"
install_requirements requirements-dev.txt

if [ "${1:-}" = --slow ]; then
    shift
    set -- -m "not gpu" "$@"
elif [ "${1:-}" = --gpu ]; then
    shift
    set -- -m gpu -n 8 "$@"  # each test process takes a share of the GPU's memory
fi
"$python" -m ruff check .
"$python" -m ruff format --check .
"$python" -m mypy
"$python" -m pytest -n auto --dist worksteal "$@"  # a test process per core, each computing on one thread
