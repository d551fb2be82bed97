#!/usr/bin/env bash
# All checks and tests: bash tests/run.sh. With arguments only pytest, with these arguments and paths from the
# repository root: bash tests/run.sh tests/unit/sts -k plan. MEGATRON_STS_STACK=newest runs them with the newest versions
# that are supported (scripts/environment.sh).
set -euo pipefail
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
cd -- "$root"
source scripts/environment.sh

# The Python half of Transformer Engine, for the tests over reference kernels. Where packages can be imported from it would
# break megatron-core, which takes it for whole. Without it these tests are skipped.
engine=$VIRTUAL_ENV/transformer_engine
engine_version=${environment_constraints:?}/transformer_engine.txt
if ! cmp -s "$engine_version" "$engine/installed"; then
    # pip would leave alone what a broken-off installation has left.
    rm -rf -- "$engine" "$engine.new"
    if environment_pip --no-deps --target "$engine.new" -r "$engine_version"; then
        cp -- "$engine_version" "$engine.new/installed"
        mv -- "$engine.new" "$engine"
    fi
fi

if [ $# -eq 0 ]; then
    bash scripts/check.sh
    # Several files at a time; a test's own ranks come on top of these processes.
    set -- -n auto --maxprocesses 4 --dist worksteal
fi
exec python -m pytest "$@"
