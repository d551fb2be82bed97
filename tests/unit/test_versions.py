"""Shows that a missing or too old torch or megatron-core is refused by name, and that an image's own build is not."""

from importlib.metadata import PackageNotFoundError

import pytest

from megatron_sts import versions
from megatron_sts.errors import ConfigError


def installed(monkeypatch: pytest.MonkeyPatch, **found: str | None) -> None:
    def version(package: str) -> str:
        answer = found[package.replace("-", "_")]
        if answer is None:
            raise PackageNotFoundError(package)
        return answer

    monkeypatch.setattr(versions, "version", version)


def test_what_is_installed_here_is_accepted():
    versions.check_versions()


@pytest.mark.parametrize("torch", ["2.10.0", "2.10.0a0+b558c986e8.nv25.11", "2.13.0+cpu", "3.0"])
def test_supported_torch_is_accepted_in_every_build(monkeypatch, torch):
    installed(monkeypatch, torch=torch, megatron_core="0.16.1")
    versions.check_versions()


@pytest.mark.parametrize(
    ("torch", "megatron_core", "message"),
    [
        ("2.9.1", "0.16.1", r"torch is version 2\.9\.1; megatron_sts needs torch 2\.10 or newer: run `pip install"),
        ("2.13.0", "0.16.0", r"megatron-core is version 0\.16\.0; megatron_sts needs megatron-core 0\.16\.1"),
        ("2.13.0", "0.9.0", r"megatron-core is version 0\.9\.0"),
        ("2.13.0", None, r"megatron-core is not installed; .* 'megatron-core>=0\.16\.1'"),
        ("2.13.0", "0.20.0rc1", r"version 0\.20\.0rc1; megatron_sts was tested with 0\.16\.1 to 0\.19: run .*<0\.20'`"),
        ("2.13.0", "1.0", r"version 1\.0; .* set MEGATRON_STS_UNTESTED=1 to try"),
    ],
)
def test_unsupported_versions_are_refused_with_the_remedy(monkeypatch, torch, megatron_core, message):
    installed(monkeypatch, torch=torch, megatron_core=megatron_core)
    with pytest.raises(ConfigError, match=message):
        versions.check_versions()


@pytest.mark.parametrize("megatron_core", ["0.17.1", "0.19.0", "0.19.7"])
def test_newer_versions_are_accepted_as_far_as_tested(monkeypatch, megatron_core):
    monkeypatch.setattr(versions, "find_spec", lambda name: name)
    installed(monkeypatch, torch="2.14.1", megatron_core=megatron_core)
    versions.check_versions()


def test_an_untested_version_can_be_tried(monkeypatch):
    monkeypatch.setattr(versions, "find_spec", lambda name: name)
    monkeypatch.setenv("MEGATRON_STS_UNTESTED", "1")
    installed(monkeypatch, torch="2.14.1", megatron_core="0.20.0")
    versions.check_versions()


def test_triton_is_asked_for_where_megatron_core_imports_it(monkeypatch):
    monkeypatch.setattr(versions, "find_spec", lambda name: None)
    installed(monkeypatch, torch="2.14.1", megatron_core="0.17.1")
    versions.check_versions()
    installed(monkeypatch, torch="2.14.1", megatron_core="0.18.0")
    with pytest.raises(ConfigError, match=r"triton is not installed; megatron-core 0\.18\.0 .*`pip install triton`"):
        versions.check_versions()
