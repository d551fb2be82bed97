"""The Visual Token Compressor: fewer visual tokens of an image, before they are moved or projected.

arXiv 2509.18150 selects tokens after the projector; a projector works on each token alone, so selecting before it
gives the same and projects less. mean_pool does not commute with the projector: it pools what the tower gave.

Shapes: m images, N visual tokens of an image, K kept of them, w the tower's width, h hidden size, g guide tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_sts.parallel.device import to_device
from megatron_sts.sts import StepPlan


@dataclass(frozen=True)
class ImageContext:
    """What a strategy may know of m images beside their features.

    samples [m, 2], on the CPU: index of the sample, place of the image in it. guides [m, h] fp32: the mean embedding
    of the words of the human turns, zero where there are none; None unless `NEEDS_GUIDE` has the strategy. project:
    from features [v, w] to the hidden size [v, h], without gradient.
    """

    samples: Tensor
    guides: Tensor | None
    project: Callable[[Tensor], Tensor]


def compress(features: Tensor, plan: StepPlan, images: ImageContext) -> Tensor:
    """features [m, N, w] of the tower -> [m, K, w], kept tokens in their order, by the plan's strategy."""
    assert features.size(1) == plan.total_visual_tokens
    if features.size(0) == 0:
        return features[:, : plan.visual_tokens]
    if plan.visual_tokens == plan.total_visual_tokens:
        return features
    return STRATEGIES[plan.strategy](features, plan, images)


def keep_planned(features: Tensor, plan: StepPlan, images: ImageContext) -> Tensor:
    """uniform, none: the same tokens of every image, as the plan names them."""
    return features[:, _on_device(plan.kept_tokens, features)]


def keep_random(features: Tensor, plan: StepPlan, images: ImageContext) -> Tensor:
    """random: a draw of its own for each image and step."""
    assert plan.draws is not None
    draws, sizes = plan.draws, (plan.total_visual_tokens, plan.visual_tokens)
    kept = [draws.kept(*sizes, sample, place) for sample, place in images.samples.tolist()]
    return _take(features, _on_device(kept, features))


def keep_text_guided(features: Tensor, plan: StepPlan, images: ImageContext) -> Tensor:
    """text_guided: the tokens most similar to the words of the human turns, once projected; else as uniform does.

    Scores without gradient: a dropped token's share of a backward pass would be zero.
    """
    assert images.guides is not None
    projected = images.project(features.flatten(0, 1)).unflatten(0, features.shape[:2])
    scores = guide_scores(projected, images.guides)
    # Stable: of two tokens with the same score the earlier one.
    order = scores.argsort(dim=1, descending=True, stable=True)
    kept = order[:, : plan.visual_tokens].sort(dim=1).values
    guided = images.guides.any(dim=1, keepdim=True)
    return _take(features, torch.where(guided, kept, _on_device(plan.kept_tokens, kept)))


def guide_scores(projected: Tensor, guides: Tensor) -> Tensor:
    """projected [m, N, h], guides [m, h] -> cosine similarities [m, N] in fp32."""
    return F.cosine_similarity(projected.float(), guides.float()[:, None], dim=2)


def pool_windows(features: Tensor, plan: StepPlan, images: ImageContext) -> Tensor:
    """mean_pool: the mean of each window of the square grid of patches, row by row; edge windows may be smaller."""
    side = round(plan.total_visual_tokens**0.5)
    grid = features.transpose(1, 2).unflatten(2, (side, side))
    # Windows that reach over the edge are divided by the patches inside alone.
    pooled = F.avg_pool2d(grid, plan.window, ceil_mode=True, count_include_pad=False)
    return pooled.flatten(2).transpose(1, 2)


def _on_device(indices: Sequence[Any], like: Tensor) -> Tensor:
    """Indices as a tensor where `like` is; made on the CPU first, so that a GPU is not waited for."""
    return to_device(torch.tensor(indices, device="cpu"), like.device)


def _take(features: Tensor, kept: Tensor) -> Tensor:
    """features [m, N, w], kept [m, K] -> [m, K, w]."""
    return features.gather(1, kept[:, :, None].expand(-1, -1, features.size(2)))


STRATEGIES: dict[str, Callable[[Tensor, StepPlan, ImageContext], Tensor]] = {
    "none": keep_planned,
    "uniform": keep_planned,
    "random": keep_random,
    "text_guided": keep_text_guided,
    "mean_pool": pool_windows,
}
"""By the recipe's `compress.strategy`."""

NEEDS_GUIDE = frozenset({"text_guided"})
"""Strategies that look at the words of the human turns."""
