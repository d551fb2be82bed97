# shellcheck shell=bash
# Makes the project's Python environment, `.venv` in the repository root, and puts it first in PATH.
#
#     source scripts/environment.sh
#
# For bash. The first time it installs everything (some minutes); later it only looks whether that is still right. The
# environment is made again, or brought up to date, where setup.py or the constraints have changed, the repository was
# moved, or an installation was broken off. With an NVIDIA GPU the machine's own torch is used and never replaced.
# PYTHON=/path/to/python chooses the Python to make it from. MEGATRON_STS_MACHINE=cpu|gpu says what the environment is for,
# where that is not the machine that makes it: no GPU is there while an image is built. MEGATRON_STS_STACK=newest makes and
# takes `.venv-newest` instead, of the newest versions that were tested (constraints/newest; Python 3.12, without a GPU).

environment_root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
environment_stack=${MEGATRON_STS_STACK:-}
environment_venv=$environment_root/.venv${environment_stack:+-$environment_stack}
environment_constraints=$environment_root/constraints${environment_stack:+/$environment_stack}
environment_python_minor=11
[ "$environment_stack" = newest ] && environment_python_minor=12
environment_torch=$(sed -n 's/^torch==//p' "$environment_constraints/cpu.txt" 2>/dev/null || :)
environment_cpu_index=https://download.pytorch.org/whl/cpu

environment_say() { printf '%s\n' "$*" >&2; }

environment_has_gpu() { command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep '^GPU' >/dev/null; }

environment_kind() {
    if [ -n "${MEGATRON_STS_MACHINE:-}" ]; then
        echo "$MEGATRON_STS_MACHINE"
    elif environment_has_gpu; then
        echo gpu
    else
        echo cpu
    fi
}

# What the stamp of a finished installation holds; another text means that there is something to install.
environment_wanted() {
    local kind=$1
    printf '%s %s\n' "$kind" "$environment_root"
    cat "$environment_root/setup.py" "$environment_root/megatron_sts/__init__.py" \
        "$environment_constraints/$kind.txt" "$environment_root/scripts/environment.sh" | cksum
}

environment_python_is_new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, int(sys.argv[1])))' "$environment_python_minor" 2>/dev/null
}

environment_is_ready() {
    [ "$(cat "$environment_venv/installed" 2>/dev/null)" = "$(environment_wanted "$1")" ] || return 1
    # Whether somebody has taken away a part of it since.
    "$environment_venv/bin/python" - <<'PYTHON' 2>/dev/null
import sys
from importlib.util import find_spec
sys.exit(not all(map(find_spec, ("torch", "megatron.core", "transformers", "megatron_sts", "pytest", "ruff", "mypy"))))
PYTHON
}

# Whether it is a working one that somebody else made: it is used, and never removed.
environment_is_foreign() {
    [ ! -e "$environment_venv/installing" ] && [ ! -e "$environment_venv/made_for" ] &&
        "$environment_venv/bin/python" -c '' 2>/dev/null
}

# Whether packages can be installed into it as it is. One that was being made, or was made for another place, is not.
environment_is_usable() {
    [ ! -e "$environment_venv/installing" ] && environment_python_is_new_enough "$environment_venv/bin/python" &&
        { [ ! -e "$environment_venv/made_for" ] || grep -qxF "$environment_root" "$environment_venv/made_for"; }
}

environment_find_python() {
    local candidate found=""
    for candidate in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11; do
        if environment_python_is_new_enough "$candidate"; then
            if "$candidate" -c 'import venv, ensurepip' 2>/dev/null; then
                "$candidate" -c 'import sys; print(sys.executable)'
                return
            fi
            environment_say "$candidate cannot make environments: its venv or ensurepip module is missing" \
                "(on Debian and Ubuntu: apt-get install python3-venv)"
        elif "$candidate" --version >/dev/null 2>&1; then
            found="$found, $("$candidate" --version 2>&1) ($candidate)"
        fi
    done
    environment_say "error: no Python that can be used was found${found:+; too old: ${found#, }}." \
        "Install Python 3.$environment_python_minor or newer, or name one with PYTHON=/path/to/python."
    return 1
}

environment_pip() { "$environment_venv/bin/python" -m pip install -qq --disable-pip-version-check "$@"; }

environment_has_torch() {
    "$environment_venv/bin/python" - "$environment_torch" <<'PYTHON' 2>/dev/null
import sys
from importlib.metadata import version
sys.exit(version("torch").partition("+")[0] != sys.argv[1])
PYTHON
}

# pip takes the build that the machine's own pip configuration offers. Where that is not a CPU build (on Linux, PyPI's
# torch brings 3 GB of CUDA libraries), torch's own index of CPU builds is added.
environment_install_cpu_torch() {
    local constraints=$1 index=() offer
    if [ "$(uname -s)" = Linux ]; then
        offer=$(environment_pip --dry-run --no-deps --ignore-installed --report - "torch==$environment_torch" 2>/dev/null)
        case $offer in
            *"\"$environment_torch+cpu\""*) ;;
            *) index=(--extra-index-url "$environment_cpu_index") ;;
        esac
    fi
    environment_pip -c "$constraints" ${index[@]+"${index[@]}"} "torch==$environment_torch"
}

# The constraints of a GPU machine: what its image has stays as it is, the rest is pinned by constraints/gpu.txt.
environment_gpu_constraints() {
    "$environment_venv/bin/python" - "$environment_constraints/gpu.txt" <<'PYTHON'
import re
import sys
from importlib.metadata import distributions
from pathlib import Path

image = re.compile(r"(torch|torchvision|torchaudio|triton|pytorch-triton|transformer-engine.*|apex|flash-attn|nvidia-.*)$")
have = {re.sub(r"[-_.]+", "-", found.name).lower(): found.version for found in distributions() if found.name}
kept = {name: version for name, version in have.items() if image.match(name)}
for name, version in sorted(kept.items()):
    print(f"{name}=={version}")
for line in Path(sys.argv[1]).read_text().splitlines():
    if line and not line.startswith("#") and line.partition("==")[0] not in kept:
        print(line)
PYTHON
}

environment_install() {
    local kind=$1 constraints=$environment_constraints/$1.txt packages=()
    if [ "$kind" = gpu ]; then
        # NVIDIA's images pin every package that they have (/etc/pip/constraint.txt), older ones than setup.py takes too.
        # What has to stay as it is, constraints.txt pins; the rest is installed over it, into the environment alone.
        unset PIP_CONSTRAINT
        constraints=$environment_venv/constraints.txt
        environment_gpu_constraints >"$constraints" || return
    elif ! environment_has_torch; then
        environment_install_cpu_torch "$constraints" || return
    fi
    # megatron-core imports it from 0.18 on and does not declare it; builds of torch for a GPU bring it.
    if [ "$kind" = cpu ] && grep '^triton==' "$constraints" >/dev/null; then
        packages=(triton)
    fi
    environment_pip -c "$constraints" ${packages[@]+"${packages[@]}"} --editable "${environment_root}[dev,quickstart]"
}

environment_make() {
    local kind python
    kind=$(environment_kind)
    if [ ! -e "$environment_constraints/$kind.txt" ]; then
        environment_say "error: MEGATRON_STS_STACK is '$environment_stack', but there is no" \
            "${environment_constraints#"$environment_root/"}/$kind.txt; unset it, or use 'newest' without a GPU."
        return 1
    fi
    environment_is_ready "$kind" && return

    if environment_is_foreign && ! environment_python_is_new_enough "$environment_venv/bin/python"; then
        environment_say "error: $environment_venv has $("$environment_venv/bin/python" --version 2>&1)," \
            "Python 3.$environment_python_minor or newer is needed; remove that directory and run the same command again."
        return 1
    fi
    if ! environment_is_usable; then
        python=$(environment_find_python) || return
        if [ -e "$environment_venv" ]; then
            environment_say "Making ${environment_venv##*/} again: the one found is incomplete or was made for another place."
        fi
        # The mark comes first and goes last, so that being killed at any point leaves it.
        mkdir -p -- "$environment_venv" && touch "$environment_venv/installing" || return
        find "$environment_venv" -mindepth 1 -maxdepth 1 ! -name installing -exec rm -rf -- {} + || return
        environment_say "Making ${environment_venv##*/} with $python and installing what the project needs ($kind):" \
            "some 2 GB on the disk, 2 to 10 minutes, once."
        local site=()
        [ "$kind" = gpu ] && site=(--system-site-packages)
        "$python" -m venv ${site[@]+"${site[@]}"} "$environment_venv" || return
        printf '%s\n' "$environment_root" >"$environment_venv/made_for"
    else
        environment_say "Bringing ${environment_venv##*/} up to date."
        touch "$environment_venv/installing"
    fi
    if ! environment_install "$kind"; then
        # pip has put back what it replaced; only an installation that was killed leaves it in pieces.
        rm -f -- "$environment_venv/installing"
        environment_say "error: the installation failed, see pip's message above; run the same command again to retry."
        return 1
    fi
    environment_wanted "$kind" >"$environment_venv/installed"
    rm -f -- "$environment_venv/installing"
    environment_say "${environment_venv##*/} is ready."
}

# One process makes it, another that starts meanwhile waits.
environment_make_alone() {
    (
        if command -v flock >/dev/null && ! flock -n 9; then
            environment_say "Another process is making ${environment_venv##*/}; waiting for it."
            flock 9
        fi
        environment_make
    ) 9<"$environment_root/setup.py"
}

# shellcheck disable=SC2317  # exit: where this file was run instead of sourced
environment_make_alone || { return 1 2>/dev/null || exit 1; }
export VIRTUAL_ENV=$environment_venv
export PATH="$environment_venv/bin:$PATH"
unset PYTHONHOME
