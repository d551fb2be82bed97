"""Shows that an error of a stage's settings names the recipe's whole key, and that nothing else of its text changes."""

import pytest

from megatron_sts.config import keys_of_stage
from megatron_sts.errors import DataError, MegatronStsError


def _through(error: Exception, stage: str = "tune") -> str:
    with pytest.raises(type(error)) as found, keys_of_stage(stage):
        raise error
    return str(found.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("no sample fits into data.max_tokens 20", "no sample fits into stages.tune.data.max_tokens 20"),
        (
            "batch.global: found 7, no multiple of batch.micro 2",
            "stages.tune.batch.global: found 7, no multiple of stages.tune.batch.micro 2",
        ),
        ("set data.images, or use (data.workers)", "set stages.tune.data.images, or use (stages.tune.data.workers)"),
        ("compress.keep_ratio is 2", "stages.tune.compress.keep_ratio is 2"),
        # Whole already, a file, a path, an architecture's key, a word.
        ("stages.align.data.train is 'x'", "stages.align.data.train is 'x'"),
        ("data.json has no data.trains", "data.json has no data.trains"),
        ("/mnt/data.images/3.png and my-data.train", "/mnt/data.images/3.png and my-data.train"),
        ("data.images/3.png", "data.images/3.png"),
    ],
)
def test_a_stages_key_is_named_whole(text, said):
    assert _through(DataError(text)) == said


def test_what_the_ranks_know_of_an_error_stays(monkeypatch):
    error = DataError("data.train: holds no sample")
    error.met_by_all = True
    assert _through(error, "align") == "stages.align.data.train: holds no sample"
    assert error.met_by_all


def test_other_errors_pass():
    assert _through(ValueError("data.train")) == "data.train"
    assert issubclass(DataError, MegatronStsError)
