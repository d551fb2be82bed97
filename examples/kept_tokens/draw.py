"""Draws which visual tokens of a picture of your own each strategy of the compressor keeps.

python examples/kept_tokens/draw.py PICTURE --config RECIPE.yaml --output kept.png [--stage NAME] [key.sub=value ...]
  [--model EXPORT --question TEXT]

The picture is shown as the recipe's tower sees it, each visual token as its patch. Amounts are those of the recipe's
stage; text_guided is drawn where a model exported from a run of the recipe scores the patches by a question.
"""

import argparse
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from megatron_sts.config import Recipe, StageConfig, load_recipe
from megatron_sts.data import IMAGE_TOKEN, ImageReader, Sample, Turn, encode_guide, load_image_processor
from megatron_sts.errors import ConfigError, MegatronStsError
from megatron_sts.evaluation.generate import Generator
from megatron_sts.model.compressor import ImageContext, compress
from megatron_sts.sts import StagePlanner, StepPlan

DROPPED = (236, 236, 236)
PANEL, TITLE, GAP = 252, 22, 8
NO_SAMPLE = torch.zeros(1, 2, dtype=torch.int64)
UNSCORED = ImageContext(NO_SAMPLE, None, lambda numbers: numbers)


def main(arguments: list[str] | None = None) -> int:
    """Draw, say what was kept; 2 on an error of the user's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", type=Path, metavar="PICTURE")
    parser.add_argument("--config", required=True, metavar="RECIPE.yaml")
    parser.add_argument("--stage", help="stage whose amount is kept (default: the first one that compresses)")
    parser.add_argument("--model", type=Path, metavar="EXPORT", help="exported model that scores for text_guided")
    parser.add_argument("--question", default="", help="what a human turn says")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.png")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value")
    options = parser.parse_intermixed_args(arguments)
    if options.question and options.model is None:
        parser.error("--question is for text_guided, which needs a trained projector: give --model")
    try:
        panels = draw(options)
        save(panels, options.output)
    except MegatronStsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"written: {options.output} ({', '.join(title for title, _ in panels)})")
    return 0


def draw(options: argparse.Namespace) -> list[tuple[str, Image.Image]]:
    """The whole picture, then one for each strategy, with their titles."""
    recipe = load_recipe(options.config, options.overrides, check_files=False)
    stage, vision = compressing_stage(recipe, options.stage), recipe.architecture.vision
    if recipe.architecture.visual_tokens != vision.patches:
        raise ConfigError(
            f"{options.config}: feature_select '{vision.feature_select}' keeps the class token, which is no patch of "
            "the picture; there is nothing to draw"
        )
    processor = load_image_processor(
        recipe.model.vision, vision.family, vision.image_size, stage.data.image_aspect_ratio
    )
    pixels = ImageReader(processor, options.picture.parent).read(options.picture.name)
    picture = as_seen(pixels, processor)
    panels = [(f"all {vision.patches}", picture)]
    for strategy in ("uniform", "random", "mean_pool"):
        plan = plan_of(recipe, stage, strategy)
        paint = pool_patches if strategy == "mean_pool" else keep_patches
        panels.append((f"{strategy} {plan.visual_tokens}", paint(picture, plan)))
    if options.model is not None:
        plan = plan_of(recipe, stage, "text_guided")
        context = scored(Generator(options.model), pixels, options.question)
        panels.append((f"text_guided {plan.visual_tokens}", keep_patches(picture, plan, context)))
    return panels


def compressing_stage(recipe: Recipe, name: str | None) -> StageConfig:
    """The stage of that name, else the first one that compresses; ConfigError where it does not, or none does."""
    for stage in [recipe.stage(name)] if name is not None else recipe.stages:
        if stage.compress is not None:
            return stage
    found = "no stage of the recipe has a" if name is None else f"stage {name!r} has no"
    raise ConfigError(
        f"{found} compress, whose amount would be drawn; "
        "name another with --stage, or give it one: stages.NAME.compress.keep_ratio=0.25"
    )


def plan_of(recipe: Recipe, stage: StageConfig, strategy: str) -> StepPlan:
    """The plan of the stage's first step, with this strategy and the amount that the recipe gives."""
    compress = stage.compress
    assert compress is not None
    kept = StagePlanner(recipe, stage, 1, 1.0).visual_tokens(0)
    changes: dict[str, Any] = {"strategy": strategy, "window": None, "keep_ratio": None, "schedule": None}
    if strategy == "mean_pool":
        # The smallest window that keeps no more.
        window = math.ceil((recipe.architecture.visual_tokens / kept) ** 0.5)
        changes |= {"window": window, "keep_tokens": None}
    else:
        changes |= {"keep_tokens": kept}
    changed = stage.model_copy(update={"compress": compress.model_copy(update=changes), "skip": ()})
    return StagePlanner(recipe, changed, 1, 1.0).plan(0)


def as_seen(pixels: Tensor, processor: Any) -> Image.Image:
    """Processed pixels [3, H, W] as a picture again."""
    mean, deviation = (torch.tensor(values)[:, None, None] for values in (processor.image_mean, processor.image_std))
    values = ((pixels * deviation + mean).clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(values.permute(1, 2, 0).numpy())


def scored(generator: Generator, pixels: Tensor, question: str) -> ImageContext:
    """What text_guided goes by: the picture's tokens as the model projects them, and the words of the question."""
    if not question.strip():
        raise ConfigError("--question: found none, by which --model is to score; give the words of a human turn")
    model, tokenizer = generator.model, generator.processor.tokenizer
    sample = Sample("picture", (Turn("human", f"{IMAGE_TOKEN}\n{question}"), Turn("assistant", "")), ("picture",))
    words = torch.tensor(encode_guide(sample, tokenizer), device=generator.device)
    with torch.no_grad():
        found = model.get_image_features(pixel_values=pixels[None].to(generator.device, generator.dtype))
        projected = torch.cat(list(found.pooler_output)).float().cpu()
        guide = model.get_input_embeddings().weight[words].float().mean(dim=0, keepdim=True).cpu()
    return ImageContext(NO_SAMPLE, guide, lambda numbers: projected)


def keep_patches(picture: Image.Image, plan: StepPlan, context: ImageContext = UNSCORED) -> Image.Image:
    """The picture with the patches of dropped tokens painted over; the compressor itself chooses, among numbers."""
    numbers = torch.arange(plan.total_visual_tokens, dtype=torch.float32)[None, :, None]
    kept = set(compress(numbers, plan, context)[0, :, 0].long().tolist())
    side = round(plan.total_visual_tokens**0.5)
    painted, patch = picture.copy(), picture.width // side
    for token in set(range(plan.total_visual_tokens)) - kept:
        row, column = divmod(token, side)
        painted.paste(DROPPED, (column * patch, row * patch, (column + 1) * patch, (row + 1) * patch))
    return painted


def pool_patches(picture: Image.Image, plan: StepPlan) -> Image.Image:
    """The picture with each window in its mean colour."""
    side = round(plan.total_visual_tokens**0.5)
    painted, reach = picture.copy(), plan.window * (picture.width // side)
    for top in range(0, picture.height, reach):
        for left in range(0, picture.width, reach):
            window = (left, top, min(left + reach, picture.width), min(top + reach, picture.height))
            colour = np.asarray(picture.crop(window)).mean(axis=(0, 1)).round().astype(int)
            painted.paste(tuple(colour.tolist()), window)
    return painted


def save(panels: list[tuple[str, Image.Image]], output: Path) -> None:
    """Write the panels side by side, in few colours, so that the file stays small."""
    sheet = Image.new("RGB", (len(panels) * (PANEL + GAP) - GAP, PANEL + TITLE), "white")
    font = ImageFont.load_default(size=14)
    for number, (title, panel) in enumerate(panels):
        left = number * (PANEL + GAP)
        ImageDraw.Draw(sheet).text((left, 2), title, fill="black", font=font)
        sheet.paste(panel.resize((PANEL, PANEL), Image.Resampling.LANCZOS), (left, TITLE))
    try:
        sheet.quantize(64, dither=Image.Dither.NONE).save(output, optimize=True)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--output {output} cannot be written ({error}); give a .png file") from error


if __name__ == "__main__":
    sys.exit(main())
