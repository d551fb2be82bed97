#!/usr/bin/env bash
# Every check and benchmark that needs a GPU, on a machine that has one:
#
#     bash tests/gpu/run.sh [part ...] [-- key=value ...]      all parts, in this order, without a name
#
#   quick      some steps in each precision, with skipped layers, saved and gone on with; what is installed
#   bf16, fp8  the benchmark's two stages, dense and sparse side by side: results.json, table.md
#   training   padding, frozen parts and their kernels, memory, two ranks on one GPU
#   losses     FP8 against bf16 over 300 steps
#   repeats    a run again, and a stopped run gone on with, bitwise
#   linear     step time against the layers skipped
#   profile    where the time of a step goes, for each goal that bf16 and fp8 have missed: profile_*.txt
#
# A part is ended after PART_TIMEOUT seconds (540), so that it fits a slot of 10 minutes; what it has found by then is
# kept. Results go to $OUT, runs/gpu where it is not set: PART.log, PART.xml of the checks, and those named above.
# Overrides after -- change the benchmark's recipe, as in `-- model.architecture.language.layers=12`. An H200 takes its
# 16 layers, a device of less than 100 GB 8.
# WHEELS=DIR: a machine without network, whose Python has torch: what DIR holds is put in front of it, in .site.
set -euo pipefail
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd -P)
cd -- "$root"
out=${OUT:-runs/gpu}
mkdir -p -- "$out"
all=(quick bf16 fp8 training losses repeats linear profile)

parts=() overrides=()
while [ $# -gt 0 ]; do
    case " ${all[*]} " in
        *" $1 "*) parts+=("$1") ;;
        *)
            [ "$1" = -- ] || {
                printf 'error: %s is no part; give some of %s\n' "$1" "${all[*]}" >&2
                exit 2
            }
            shift
            overrides=("$@")
            break
            ;;
    esac
    shift
done
[ ${#parts[@]} -gt 0 ] || parts=("${all[@]}")

if [ -n "${WHEELS:-}" ]; then
    if [ ! -e .site/installed ]; then
        python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target .site "$WHEELS"/*.whl
        touch .site/installed
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
# Found out now and named, not part by part. The reason tells a package that is missing from one that does not load.
"$python" - <<'PYTHON' || exit 2
import importlib
import sys

import torch

needed = "megatron.core transformer_engine.pytorch transformers omegaconf pydantic PIL rich psutil pytest".split()
failed = []
for name in needed:
    try:
        importlib.import_module(name)
    except Exception as error:
        failed.append(f"{name} ({type(error).__name__}: {error})")
if failed:
    sys.exit(f"error: {sys.executable} with torch {torch.__version__} cannot import {'; '.join(failed)}; nothing was run")
PYTHON
# One queue, so that communication starts before the product that it overlaps.
export CUDA_DEVICE_MAX_CONNECTIONS=${CUDA_DEVICE_MAX_CONNECTIONS:-1}
# Sequence lengths change from step to step: blocks that grow leave less between them unused.
export PYTORCH_CUDA_ALLOC_CONF=${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}
"$python" docker/versions.py gpu 2>&1 | tee "$out/versions.txt" || true
nvidia-smi >>"$out/versions.txt" 2>&1 || true

failed=()
for part in "${parts[@]}"; do
    echo "== $part ($(date +%H:%M:%S))"
    case $part in
        quick | training | losses | repeats)
            command=(-m pytest "tests/gpu/test_$part.py" -p no:cacheprovider -v -rs "--junitxml=$out/$part.xml")
            ;;
        *) command=(-m tests.gpu.benchmark --part "$part" --output "$out" "${overrides[@]}") ;;
    esac
    # An interrupt, at which pytest still writes down what has passed.
    timeout --signal=INT --kill-after=30 "${PART_TIMEOUT:-540}" "$python" "${command[@]}" 2>&1 |
        tee "$out/$part.log" || failed+=("$part")
done
if [ ${#failed[@]} -gt 0 ]; then
    echo "failed: ${failed[*]}; results in $out" >&2
    exit 1
fi
echo "passed: ${parts[*]}; results in $out"
