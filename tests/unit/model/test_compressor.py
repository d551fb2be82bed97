"""Shows what each strategy of the compressor makes of the tower's features, by hand."""

from dataclasses import replace

import pytest
import torch

from megatron_sts.model.compressor import STRATEGIES, ImageContext, compress
from megatron_sts.sts import Draws, StepPlan

# Two images, a grid of 3 x 3 patches, width 1: token i of the first is i, of the second 10 + i.
FEATURES = torch.stack([torch.arange(9.0), 10 + torch.arange(9.0)])[:, :, None]
SAMPLES = torch.tensor([[4, 0], [4, 1]])


def plan(strategy: str, kept: tuple[int, ...], window: int = 1) -> StepPlan:
    return StepPlan(0, frozenset(), kept, 9, strategy, window, Draws(1, "align", 0))


def found(strategy: str, kept: tuple[int, ...], window: int = 1, context: ImageContext | None = None):
    context = context or ImageContext(SAMPLES, None, lambda features: features)
    return compress(FEATURES, plan(strategy, kept, window), context)[:, :, 0].tolist()


def test_uniform_keeps_the_planned_tokens_of_every_image():
    assert found("uniform", (0, 4)) == [[0, 4], [10, 14]]


def test_random_keeps_each_images_own_draw():
    draws = Draws(1, "align", 0)
    expected = [[10 * image + token for token in draws.kept(9, 3, 4, image)] for image in (0, 1)]
    assert found("random", (0, 3, 6)) == expected
    assert [token + 10 for token in expected[0]] != expected[1]


def test_mean_pool_takes_the_mean_of_the_patches_inside_each_window():
    # Windows of two over a side of three: 2 x 2, 2 x 1, 1 x 2 and 1 x 1 patches.
    first = [(0 + 1 + 3 + 4) / 4, (2 + 5) / 2, (6 + 7) / 2, 8]
    assert found("mean_pool", (0, 1, 2, 3), window=2) == [first, [10 + value for value in first]]


def test_text_guided_keeps_the_tokens_most_like_the_guide_in_order_and_the_earlier_of_two_alike():
    # Directions in the plane by token: cosines with the guide (1, 0) are 0, 1, 0.6, 1, 0.6, -1, 0, 0, 0.
    directions = [(0, 1), (2, 0), (3, 4), (5, 0), (6, 8), (-1, 0), (0, 1), (0, 1), (0, 2)]
    table = torch.tensor(directions, dtype=torch.float32).repeat(2, 1)
    guides = torch.tensor([[7.0, 0.0], [-1.0, 0.0]])
    context = ImageContext(SAMPLES, guides, lambda features: table)
    # The other guide points away: the token that points away with it is its best, then those at right angles.
    assert found("text_guided", (0, 3, 6), context=context) == [[1, 2, 3], [10, 15, 16]]


def test_text_guided_without_words_keeps_what_uniform_does():
    context = ImageContext(SAMPLES, torch.zeros(2, 1), lambda features: features)
    assert found("text_guided", (0, 4), context=context) == [[0, 4], [10, 14]]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_all_tokens_kept_are_the_features_themselves(strategy):
    whole = plan(strategy, tuple(range(9)))
    context = ImageContext(SAMPLES, torch.ones(2, 1), lambda features: features)
    assert torch.equal(compress(FEATURES, whole, context), FEATURES)
    some = replace(whole, kept_tokens=(0, 4, 6, 8), window=2)
    assert compress(FEATURES[:0], some, context).shape == (0, 4, 1)
