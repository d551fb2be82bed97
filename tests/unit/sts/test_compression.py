"""Shows how many visual tokens a step keeps under each schedule, by hand, and that random draws are named alone."""

from collections import Counter

import pytest

from megatron_sts.config import CompressConfig, KeepScheduleConfig
from megatron_sts.sts.compression import Draws, keep_ratio, kept_tokens, most_kept_tokens, scored_tokens, windows


@pytest.mark.parametrize(
    ("schedule", "shares"),
    [
        ({"kind": "constant", "start": 0.5}, [0.5, 0.5, 0.5, 0.5]),
        ({"kind": "linear", "start": 0.2, "end": 1.0}, [0.2, 0.4, 0.6, 0.8]),
        # 1 - cos(pi e) is 0, 1 - sqrt(1/2), 1, 1 + sqrt(1/2).
        ({"kind": "cosine", "start": 1.0, "end": 0.5}, [1.0, 0.9267767, 0.75, 0.5732233]),
        ({"kind": "steps", "values": [0.25, 0.5, 1.0]}, [0.25, 0.25, 0.5, 1.0]),
    ],
)
def test_shares_at_each_quarter_of_a_stage(schedule, shares):
    config = KeepScheduleConfig.model_validate(schedule)
    assert [keep_ratio(config, quarter / 4) for quarter in range(4)] == pytest.approx(shares)


@pytest.mark.parametrize(
    ("compress", "first", "half", "most"),
    [
        (None, 36, 36, 36),
        ({"strategy": "none", "keep_ratio": 0.5}, 36, 36, 36),
        ({"strategy": "random"}, 18, 18, 18),
        ({"strategy": "text_guided", "keep_tokens": 5}, 5, 5, 5),
        ({"strategy": "mean_pool"}, 9, 9, 9),
        # Six patches a side in windows of four: a whole one and a rest.
        ({"strategy": "mean_pool", "window": 4}, 4, 4, 4),
        ({"schedule": {"kind": "linear", "start": 0.25, "end": 1.0}}, 9, 23, 36),
        ({"schedule": {"kind": "steps", "values": [1.0, 0.5]}}, 36, 18, 36),
    ],
)
def test_kept_of_36_tokens(compress, first, half, most):
    config = None if compress is None else CompressConfig.model_validate(compress)
    assert (kept_tokens(config, 36, 0.0), kept_tokens(config, 36, 0.5)) == (first, half)
    assert most_kept_tokens(config, 36) == most


def test_windows_of_llavas_grid():
    assert [windows(576, window) for window in (1, 2, 3, 5, 24)] == [576, 144, 64, 25, 1]


def test_only_text_guided_projects_tokens_to_score_them():
    assert scored_tokens("text_guided", 9, 36) == 36
    assert scored_tokens("text_guided", 36, 36) == scored_tokens("random", 9, 36) == 0


def test_a_draw_is_a_subset_in_order_and_differs_by_every_name():
    names = [(1, "align", 0, 3, 0), (2, "align", 0, 3, 0), (1, "tune", 0, 3, 0), (1, "align", 1, 3, 0)]
    names += [(1, "align", 0, 4, 0), (1, "align", 0, 3, 1)]
    found = [Draws(seed, stage, step).kept(36, 9, sample, image) for seed, stage, step, sample, image in names]
    assert all(len(kept) == 9 and list(kept) == sorted(set(kept)) and set(kept) <= set(range(36)) for kept in found)
    assert len(set(found)) == len(names)
    assert found[0] == Draws(1, "align", 0).kept(36, 9, 3, 0)


def test_every_token_is_drawn_equally_often():
    counts = Counter(token for sample in range(4000) for token in Draws(5, "align", 0).kept(8, 2, sample, 0))
    # 1000 expected of each, standard deviation 27.
    assert len(counts) == 8 and all(880 < count < 1120 for count in counts.values())
