"""The versions of torch and megatron-core that the package works with, and those that are installed."""

import contextlib
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from packaging.version import Version

from megatron_sts.errors import ConfigError

# Contract: setup.py asks pip for the same.
OLDEST = {"torch": (2, 10), "megatron-core": (0, 16, 1)}
NEWEST = {"megatron-core": (0, 19)}
"""The newest minor version that was tested. The package derives from classes of megatron-core, and what a later version
adds to their methods might not take place."""
IMPORTS_TRITON = (0, 18)
"""From this megatron-core on its pipeline schedules import triton, which it does not declare."""
_UNTESTED = "MEGATRON_STS_UNTESTED"
_REPORTED = ("megatron_sts", "torch", "megatron-core", "transformers", "transformer_engine")


def check_versions() -> None:
    """Raise ConfigError where torch or megatron-core is missing, too old, or newer than tested.

    Call it before anything imports them: an old version fails with an import error that does not name it. With
    MEGATRON_STS_UNTESTED=1 in the environment newer versions are let through.
    """
    for package, oldest in OLDEST.items():
        wanted = f"{package} {'.'.join(map(str, oldest))} or newer"
        remedy = f"run `pip install '{package}>={'.'.join(map(str, oldest))}'`"
        try:
            found = version(package)
        except PackageNotFoundError:
            raise ConfigError(f"{package} is not installed; megatron_sts needs {wanted}: {remedy}") from None
        if _release(found) < oldest:
            raise ConfigError(f"{package} is version {found}; megatron_sts needs {wanted}: {remedy}")
        _check_not_too_new(package, found)
    if _release(version("megatron-core")) >= IMPORTS_TRITON and find_spec("triton") is None:
        raise ConfigError(
            f"triton is not installed; megatron-core {version('megatron-core')} imports it: run `pip install triton`"
        )


def _check_not_too_new(package: str, found: str) -> None:
    newest = NEWEST.get(package)
    if newest is None or _release(found)[: len(newest)] <= newest or os.environ.get(_UNTESTED) == "1":
        return
    oldest, after = ".".join(map(str, OLDEST[package])), f"{newest[0]}.{newest[1] + 1}"
    raise ConfigError(
        f"{package} is version {found}; megatron_sts was tested with {oldest} to {newest[0]}.{newest[1]}: run "
        f"`pip install '{package}>={oldest},<{after}'`, or set {_UNTESTED}=1 to try this one"
    )


def installed_versions() -> dict[str, str]:
    """Of Python, this package and those it stands on, as far as they are installed."""
    versions = {"python": platform.python_version()}
    for name in _REPORTED:
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


def _release(text: str) -> tuple[int, ...]:
    """The numbers of a version alone: an image's pre-release, such as 2.10.0a0+b558c98, counts as its release."""
    return Version(text).release
