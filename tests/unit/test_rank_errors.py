"""Shows that an error of all ranks is told once, before any of them ends, and one rank's own by that rank."""

import json
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
        # A launcher ends it while it waits; one that is still there was alone with its error.
        ("3", ConfigError("seed"), "error: seed\n", [SECONDS_FOR_RANK_ZERO]),
        ("3", DataError("a.png"), "error: a.png\n", []),
        ("3", LostRankError("refused"), "error: refused\n", []),
        ("0", MET_BY_ALL, "error: record 7\n", []),
        ("3", MET_BY_ALL, "error: record 7\n", [SECONDS_FOR_RANK_ZERO]),
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
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    tell_error(error)
    assert capsys.readouterr().err == said
    assert slept == waits


def test_of_the_ranks_that_waited_one_speaks_and_all_leave_it_for_the_launcher(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    for rank in (3, 2, 1):
        file = tmp_path / str(rank) / "error.json"
        file.parent.mkdir()
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file))
        tell_error(ConfigError("seed"))
        # The form that torchrun reads.
        assert json.loads(file.read_text())["message"] == "error: seed"
        assert abs(int(json.loads(file.read_text())["timestamp"]) - time.time()) < 60
    assert capsys.readouterr().err == "error: seed\n"
    tell_error(DataError("a.png"))
    assert capsys.readouterr().err == "error: a.png\n", "its own is always told"
