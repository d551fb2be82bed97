"""Whether an exported model computes what the trained one does: their logits on the same pictures and prompts."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

from megatron_sts.config import ParallelConfig, read_run
from megatron_sts.data import Batch
from megatron_sts.model.build import build_chunks
from megatron_sts.parallel.groups import group_collection, start_groups, stop_groups
from megatron_sts.sts import full_plan


def largest_logit_difference(checkpoint: Path, export: Path, questions: Sequence[tuple[Path, str]]) -> float:
    """The largest difference of any logit between a checkpoint's model and its export.

    At all visual tokens and all layers, in fp32, over every position of every prompt. questions: pictures and what
    is asked about each. Makes, and leaves, a process group of one process; not for use inside a training run.
    """
    processor = AutoProcessor.from_pretrained(export, backend="pil", local_files_only=True, trust_remote_code=False)
    exported = AutoModelForImageTextToText.from_pretrained(
        export, dtype=torch.float32, local_files_only=True, trust_remote_code=False
    ).eval()
    prompts = [prompt_inputs(processor, picture, text) for picture, text in questions]
    with checkpoint_logits(checkpoint) as logits_of, torch.inference_mode():
        differences = [
            exported(**inputs).logits - logits_of(inputs, exported.config.image_token_id) for inputs in prompts
        ]
    return max(float(difference.abs().max()) for difference in differences)


def prompt_inputs(processor: Any, picture: Path | Image.Image, text: str) -> dict[str, Tensor]:
    """What a LLaVA model takes for a question about a picture, in its own chat template."""
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
    if isinstance(picture, Path):
        with Image.open(picture) as opened:
            picture = opened.convert("RGB")
    return dict(processor(text=prompt, images=picture, return_tensors="pt"))


@contextmanager
def checkpoint_logits(checkpoint: Path) -> Iterator[Callable[[Mapping[str, Tensor], int], Tensor]]:
    """A checkpoint's model, in fp32 in this process: a function of `prompt_inputs` and the id of `<image>`.

    It returns logits [1, s, V] without the rows that pad the vocabulary. The process group is left at the end.
    """
    recipe = read_run(checkpoint).recipe
    recipe = recipe.model_copy(update={"parallel": ParallelConfig(), "precision": "fp32"})
    start_groups(recipe.parallel, recipe.seed)
    try:
        (model,) = build_chunks(recipe, group_collection(), draw_weights=False)
        state = dist_checkpointing.load({"model": model.sharded_state_dict()}, str(checkpoint))
        model.load_state_dict(state["model"], strict=True)
        model.eval().set_plan(full_plan(recipe.architecture.visual_tokens))

        def logits(inputs: Mapping[str, Tensor], image_token: int) -> Tensor:
            batch = _batch(inputs, image_token)
            return model(batch).float().cpu()[..., : recipe.architecture.language.vocabulary_size]

        yield logits
    finally:
        stop_groups()


def _batch(inputs: Mapping[str, Tensor], image_token: int) -> Batch:
    tokens = inputs["input_ids"].cpu()
    slots = (tokens[0] == image_token).nonzero().flatten()
    batch = Batch(
        tokens=tokens,
        labels=torch.full_like(tokens, -100),
        pixels=inputs["pixel_values"],
        image_rows=torch.zeros(1, dtype=torch.int64),
        image_starts=slots[:1],
        visual_tokens=len(slots),
        image_samples=torch.zeros(1, 2, dtype=torch.int64),
        guides=torch.zeros(1, 0, dtype=torch.int64),
    )
    return batch.on_device(torch.cuda.current_device())
