#!/usr/bin/env bash
# All checks and tests: bash tests/run.sh. With arguments only pytest, with these arguments and paths from the
# repository root: bash tests/run.sh tests/unit/sts -k plan.
set -euo pipefail
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
cd -- "$root"
source scripts/environment.sh

# The Python half of Transformer Engine, for the tests over reference kernels. Where packages can be imported from it would
# break megatron-core, which takes it for whole. Without it these tests are skipped.
engine=$VIRTUAL_ENV/transformer_engine
if ! cmp -s constraints/transformer_engine.txt "$engine/installed"; then
    # pip would leave alone what a broken-off installation has left.
    rm -rf -- "$engine" "$engine.new"
    if environment_pip --no-deps --target "$engine.new" -r constraints/transformer_engine.txt; then
        cp -- constraints/transformer_engine.txt "$engine.new/installed"
        mv -- "$engine.new" "$engine"
    fi
fi

if [ $# -eq 0 ]; then
    bash scripts/check.sh
    # Several files at a time; a test's own ranks come on top of these processes.
    set -- -n auto --maxprocesses 4 --dist worksteal
fi
exec python -m pytest "$@"
