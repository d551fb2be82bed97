"""Shows that a misspelt name is answered with the nearest one, and a strange one with none."""

from megatron_sts.config.suggestion import suggestion


def test_the_nearest_name_is_offered() -> None:
    assert suggestion("alhpa", ["epsilon", "alpha"]) == "; did you mean 'alpha'?"


def test_nothing_is_offered_where_nothing_is_near() -> None:
    assert suggestion("zzz", ["epsilon", "alpha"]) == ";"
