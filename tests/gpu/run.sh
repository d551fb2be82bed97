#!/usr/bin/env bash
# Every check and benchmark that needs a GPU, on a machine that has one:
#
#     bash tests/gpu/run.sh [checks] [bf16] [fp8] [linear] [-- key=value ...]      all parts without a name
#
# Each part ends within PART_TIMEOUT seconds (3600). Results go to $OUT, runs/gpu where it is not set: checks.xml,
# results.json, table.md. Overrides after -- change the benchmark's recipe: an H100 of 80 GB holds 8 layers,
# `-- model.architecture.language.layers=8`.
# WHEELS=DIR: a machine without network, whose Python has torch: what DIR holds is put in front of it, in .site.
set -euo pipefail
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd -P)
cd -- "$root"
out=${OUT:-runs/gpu}
mkdir -p -- "$out"

parts=() overrides=()
while [ $# -gt 0 ]; do
    case $1 in
        checks | bf16 | fp8 | linear) parts+=("$1") ;;
        --)
            shift
            overrides=("$@")
            break
            ;;
        *)
            printf 'error: %s is no part; give checks, bf16, fp8, linear\n' "$1" >&2
            exit 2
            ;;
    esac
    shift
done
[ ${#parts[@]} -gt 0 ] || parts=(checks bf16 fp8 linear)

if [ -n "${WHEELS:-}" ]; then
    if [ ! -d .site ]; then
        python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target .site "$WHEELS"/*.whl
    fi
    export PYTHONPATH=$root/.site:$root
    python=python3
elif python3 -c 'import torch, megatron.core, transformer_engine.pytorch, pytest' 2>/dev/null; then
    # An image that has all: nothing is installed.
    export PYTHONPATH=$root
    python=python3
else
    source scripts/environment.sh
    python=python
fi
if ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo 'error: torch finds no CUDA device here; nothing was run' >&2
    exit 2
fi
# One queue, so that communication starts before the product that it overlaps.
export CUDA_DEVICE_MAX_CONNECTIONS=${CUDA_DEVICE_MAX_CONNECTIONS:-1}

failed=()
for part in "${parts[@]}"; do
    echo "== $part"
    if [ "$part" = checks ]; then
        command=(-m pytest tests/gpu/test_training.py -v -rs "--junitxml=$out/checks.xml")
    else
        command=(-m tests.gpu.benchmark --part "$part" --output "$out" "${overrides[@]}")
    fi
    timeout --kill-after=30 "${PART_TIMEOUT:-3600}" "$python" "${command[@]}" || failed+=("$part")
done
if [ ${#failed[@]} -gt 0 ]; then
    echo "failed: ${failed[*]}; results in $out" >&2
    exit 1
fi
echo "passed: ${parts[*]}; results in $out"
