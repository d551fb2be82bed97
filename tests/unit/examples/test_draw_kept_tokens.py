"""Shows that the drawn patches are those of the tokens that the compressor keeps."""

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[3] / "examples" / "kept_tokens"))
import draw

from megatron_sts.model.compressor import ImageContext
from megatron_sts.sts import Draws, StepPlan
from tests.tiny import tiny_recipe

# 4 x 4 patches of 14 x 14 pixels, patch i in colour (10 i, 0, 100).
PICTURE = Image.fromarray(
    np.kron(np.array([[10 * i for i in range(4 * r, 4 * r + 4)] for r in range(4)]), np.ones((14, 14)))[:, :, None]
    .repeat(3, 2)
    .astype(np.uint8)
    * np.array([1, 0, 0], np.uint8)
    + np.array([0, 0, 100], np.uint8)
)


def _patches(picture: Image.Image) -> list[tuple[int, ...]]:
    """The colour of each patch, which has no other."""
    pixels = np.asarray(picture).reshape(4, 14, 4, 14, 3).transpose(0, 2, 1, 3, 4).reshape(16, 196, 3)
    assert (pixels == pixels[:, :1]).all()
    return [tuple(patch[0].tolist()) for patch in pixels]


def _kept(picture: Image.Image) -> list[int]:
    return [token for token, colour in enumerate(_patches(picture)) if colour == (10 * token, 0, 100)]


def test_patches_of_kept_tokens_stay_and_the_others_are_painted_over():
    kept = (0, 5, 6, 15)
    painted = draw.keep_patches(PICTURE, StepPlan(0, frozenset(), kept, 16))
    assert _kept(painted) == list(kept) and _patches(painted).count(draw.DROPPED) == 12
    drawn = StepPlan(0, frozenset(), kept, 16, "random", draws=Draws(3, "align", 0))
    assert _kept(draw.keep_patches(PICTURE, drawn)) == list(Draws(3, "align", 0).kept(16, 4, 0, 0))


def test_text_guided_keeps_what_is_most_like_the_words():
    # Tokens 9 and 2 point as the guide does, the others away.
    projected = torch.tensor([[-1.0, 1.0]]).repeat(16, 1)
    projected[[9, 2]] = torch.tensor([2.0, 0.0])
    context = ImageContext(draw.NO_SAMPLE, torch.tensor([[1.0, 0.0]]), lambda numbers: projected)
    plan = StepPlan(0, frozenset(), (0, 8), 16, "text_guided")
    assert _kept(draw.keep_patches(PICTURE, plan, context)) == [2, 9]


def test_windows_show_the_mean_of_the_patches_inside():
    painted = _patches(draw.pool_patches(PICTURE, StepPlan(0, frozenset(), (0, 1, 2, 3), 16, "mean_pool", 3)))
    # The first window has patches 0 to 2, 4 to 6 and 8 to 10, the last one patch 15 alone.
    assert painted[0] == painted[10] == (50, 0, 100) and painted[15] == (150, 0, 100)
    assert painted[3] == painted[11] == (70, 0, 100)


def test_the_command_draws_every_strategy_in_the_amount_of_the_recipe(tmp_path, capsys):
    recipe = tiny_recipe(tmp_path, align__compress={"keep_ratio": 0.25})
    written = tmp_path / "recipe.yaml"
    written.write_text(recipe.model_dump_json(exclude_none=True, by_alias=True))
    output = tmp_path / "kept.png"
    assert draw.main([str(tmp_path / "images" / "0.png"), "--config", str(written), "--output", str(output)]) == 0
    assert "all 16, uniform 4, random 4, mean_pool 4" in capsys.readouterr().out
    assert Image.open(output).size == (4 * draw.PANEL + 3 * draw.GAP, draw.PANEL + draw.TITLE)
    assert draw.main([str(tmp_path / "none.png"), "--config", str(written), "--output", str(output)]) == 2
    assert "none.png" in capsys.readouterr().err
