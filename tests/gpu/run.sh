#!/usr/bin/env bash
# Everything that needs a GPU, on a machine that has one:
#
#     bash tests/gpu/run.sh slot                            what is worth most, in 420 s
#     bash tests/gpu/run.sh slot --rehearse                 the same on a CPU, over reference kernels, at tiny sizes
#     bash tests/gpu/run.sh PART ... [-- key=value ...]     some parts, each within its own limit; all without a name
#
# `slot` runs these, in order of worth; each is ended at its limit, and what it has found by then is kept:
#
#   first      go or no-go: steps in bf16, each FP8 recipe and fp32 against the CPU's in fp32; skipped, packed, recomputed,
#              saved and resumed; which attention ran, whether fusions are compiled
#   speed      both stages at 7B shapes: dense, STS, FP8, both, step by step in turn; goals
#   waits      how often the host waits in a step, and where; a step under the profiler
#   losses     FP8 against bf16 over 300 steps of a small model, side by side with
#   ranks      two ranks on one GPU: tensor with sequence parallelism, pipeline
#   host       what a layer costs the host
#   lengths    what a new sequence length costs
#   study      examples/study on SmolLM2, where examples/smollm2 has made its data and weights (MEGATRON_STS_STUDY=DIR)
#
# Without a name there follow
#
#   checks     padding, frozen parts and their kernels, memory over 500 steps
#   repeats    a run again, and a stopped run resumed, bitwise
#   linear     step time against the layers that are skipped
#
# Results go to $OUT, runs/gpu where it is not set, six files: slot.log; results.jsonl, a line for everything found, when
# it is found; summary.md, written anew after every part; profile.txt and trace.json.gz; versions.txt.
# Overrides after -- change the timed recipe (examples/benchmark_h200).
# WHEELS=DIR: a machine without network, whose Python has torch: what DIR holds is put in front of it, in .site.
# MEGATRON_STS_NCCL=FILE: the libnccl.so.2 that `ranks` takes, 2.30 or newer; DIR/libnccl.so.2.xz is unpacked for it.
set -euo pipefail
began=$(date +%s)
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd -P)
cd -- "$root"
export OUT=${OUT:-runs/gpu}
mkdir -p -- "$OUT"

rehearses=
for word in "$@"; do
    [ "$word" != -- ] || break
    [ "$word" != --rehearse ] || rehearses=yes
done

if [ -n "$rehearses" ]; then
    [ -n "${VIRTUAL_ENV:-}" ] || source scripts/environment.sh
    if [ ! -d "$VIRTUAL_ENV/transformer_engine" ]; then
        echo "error: $VIRTUAL_ENV has no transformer_engine; bash tests/run.sh installs it; nothing was run" >&2
        exit 2
    fi
    export PYTHONPATH=$root:$VIRTUAL_ENV/transformer_engine PYTHONWARNINGS=ignore
    # Ranks share the cores, and compiling would take longer than it saves.
    export CUDA_VISIBLE_DEVICES='' OMP_NUM_THREADS=1 TORCH_COMPILE_DISABLE=1
    python=python
else
    if ! nvidia-smi -L 2>/dev/null | grep '^GPU' >/dev/null; then
        echo 'error: nvidia-smi finds no GPU here; nothing was run (--rehearse runs on a CPU)' >&2
        exit 2
    fi
    if [ -n "${WHEELS:-}" ]; then
        if [ -e "$WHEELS/libnccl.so.2.xz" ] && [ -z "${MEGATRON_STS_NCCL:-}" ]; then
            export MEGATRON_STS_NCCL=$root/.site/nccl/libnccl.so.2
            mkdir -p -- .site/nccl
            # Beside everything else: it takes some seconds, and `ranks` comes late.
            python3 - "$WHEELS/libnccl.so.2.xz" "$MEGATRON_STS_NCCL" <<'PYTHON' &
import lzma
import os
import shutil
import sys
packed, library = sys.argv[1:]
with lzma.open(packed) as source, open(library + ".partial", "wb") as target:
    shutil.copyfileobj(source, target)
os.rename(library + ".partial", library)
PYTHON
        fi
        if [ ! -e .site/installed ]; then
            python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target .site "$WHEELS"/*.whl
            touch .site/installed
        fi
        export PYTHONPATH=$root/.site:$root
        python=python3
    elif python3 - <<'PYTHON' 2>/dev/null; then
import sys
from importlib.util import find_spec
sys.exit(not all(map(find_spec, ("torch", "megatron.core", "transformer_engine", "transformers", "omegaconf", "pydantic"))))
PYTHON
        # An image that has all: nothing is installed.
        export PYTHONPATH=$root
        python=python3
    else
        source scripts/environment.sh
        export PYTHONPATH=$root
        python=python
    fi
    # What the test suite sets for CPU ranks; training on a GPU compiles its small fusions.
    unset TORCH_COMPILE_DISABLE OMP_NUM_THREADS
    # One queue, so that communication starts before the product that it overlaps.
    export CUDA_DEVICE_MAX_CONNECTIONS=${CUDA_DEVICE_MAX_CONNECTIONS:-1}
    # Sequence lengths change from step to step: blocks that grow leave less between them unused.
    export PYTORCH_CUDA_ALLOC_CONF=${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}
    {
        git log -1 --format='commit %H' 2>/dev/null || true
        nvidia-smi
    } >"$OUT/versions.txt" 2>&1 || true
fi
exec > >(tee "$OUT/slot.log") 2>&1
exec "$python" -u -m tests.gpu.runner --began "$began" "$@"
