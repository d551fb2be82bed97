"""Shows that a mistake of all ranks is told once, before any of them ends, and one rank's own by that rank."""

import time

import pytest

from megatron_sts.errors import ConfigError, DataError, LostRankError
from megatron_sts.rank_errors import SECONDS_FOR_RANK_ZERO, tell_error

MET_BY_ALL = DataError("record 7")
MET_BY_ALL.met_by_all = True


@pytest.mark.parametrize(
    ("rank", "error", "said", "waits"),
    [
        (None, ConfigError("seed"), "error: seed\n", []),
        ("0", ConfigError("seed"), "error: seed\n", []),
        ("3", ConfigError("seed"), "", [SECONDS_FOR_RANK_ZERO]),
        ("3", DataError("a.png"), "error: a.png\n", []),
        ("3", LostRankError("refused"), "error: refused\n", []),
        ("0", MET_BY_ALL, "error: record 7\n", []),
        ("3", MET_BY_ALL, "", [SECONDS_FOR_RANK_ZERO]),
    ],
    ids=[
        "no ranks",
        "rank 0",
        "another rank",
        "its own picture",
        "its own network",
        "record of all",
        "another's record",
    ],
)
def test_rank_zero_speaks_while_the_others_wait(monkeypatch, capsys, rank, error, said, waits):
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    tell_error(error)
    assert capsys.readouterr().err == said
    assert slept == waits
