#!/usr/bin/env bash
# Trains a small LLaVA-style model through both stages, dense and with STS, exports it and shows what was saved.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
source "$root/scripts/environment.sh"
exec python -W ignore "$root/examples/quickstart/run.py" "$@"
