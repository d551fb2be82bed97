#!/usr/bin/env bash
# Lint, format and types, of the whole tree and its shell scripts: what `make check`, pre-commit and tests/run.sh run.
set -euo pipefail
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
cd -- "$root"
source scripts/environment.sh

python -m ruff check .
python -m ruff format --check .
python -m mypy
shellcheck .ci/run examples/*/*.sh examples/launch/slurm.sbatch docker/*.sh scripts/*.sh tests/*.sh tests/gpu/run.sh
