#!/usr/bin/env bash
# Trains a small LLaVA-style model through both stages, dense and with STS, exports it and shows what was saved.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
source "$root/scripts/environment.sh"
# Bars of loaded weights, and megatron-core's notes of what is not installed, would bury the progress.
export HF_HUB_DISABLE_PROGRESS_BARS=1 PYTHONWARNINGS=ignore
# Threads that wait asleep: on a machine that others use too, threads that spin wait for one that is not running.
export OMP_WAIT_POLICY=PASSIVE TOKENIZERS_PARALLELISM=false
exec python "$root/examples/quickstart/run.py" "$@"
