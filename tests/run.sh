#!/usr/bin/env bash
# All checks and tests: bash tests/run.sh. With arguments only pytest, with these arguments and paths from the
# repository root: bash tests/run.sh tests/unit/sts -k plan.
set -euo pipefail
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
cd -- "$root"
source scripts/environment.sh

if [ $# -eq 0 ]; then
    bash scripts/check.sh
    # Several files at a time; a test's own ranks come on top of these processes.
    set -- -n auto --maxprocesses 4 --dist worksteal
fi
exec python -m pytest "$@"
