"""The versions of torch and megatron-core that the package works with, and those that are installed."""

import contextlib
import platform
from importlib.metadata import PackageNotFoundError, version

from packaging.version import Version

from megatron_sts.errors import ConfigError

# Contract: setup.py asks pip for the same.
OLDEST = {"torch": (2, 10), "megatron-core": (0, 16, 1)}
_REPORTED = ("megatron_sts", "torch", "megatron-core", "transformers", "transformer_engine")


def check_versions() -> None:
    """Raise ConfigError where torch or megatron-core is missing or older than the package works with.

    Call it before anything imports them: an old version fails with an import error that does not name it.
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
