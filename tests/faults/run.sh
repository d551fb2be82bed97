#!/usr/bin/env bash
# Every fault of docs/faults.md, with real processes and real files, and the table of results as markdown:
#
#     bash tests/faults/run.sh [FILE.md] [pytest arguments]        FILE.md: runs/faults/table.md
set -euo pipefail
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd -P)
cd -- "$root"
source scripts/environment.sh

table=runs/faults/table.md
case ${1:-} in
    *.md)
        table=$1
        shift
        ;;
esac
exec python -m pytest tests/faults --all-faults --fault-table "$table" "$@"
