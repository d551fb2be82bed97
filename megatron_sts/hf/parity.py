"""Whether an exported model computes what the trained one does: their logits on the same pictures and prompts."""

from collections.abc import Sequence
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
from megatron_sts.model.mllm import MultimodalModel
from megatron_sts.parallel.groups import group_collection, start_groups, stop_groups
from megatron_sts.sts import full_plan


def largest_logit_difference(checkpoint: Path, export: Path, questions: Sequence[tuple[Path, str]]) -> float:
    """The largest difference of any logit between a checkpoint's model and its export.

    At all visual tokens and all layers, in fp32, over every position of every prompt. questions: pictures and what
    is asked about each. Makes, and leaves, a process group of one process; not for use inside a training run.
    """
    processor = AutoProcessor.from_pretrained(export, local_files_only=True)
    exported = AutoModelForImageTextToText.from_pretrained(export, dtype=torch.float32, local_files_only=True).eval()
    prompts = [_inputs(processor, picture, text) for picture, text in questions]
    recipe = read_run(checkpoint).recipe
    recipe = recipe.model_copy(update={"parallel": ParallelConfig(), "precision": "fp32"})
    start_groups(recipe.parallel, recipe.seed)
    try:
        (trained,) = build_chunks(recipe, group_collection(), draw_weights=False)
        state = dist_checkpointing.load({"model": trained.sharded_state_dict()}, str(checkpoint))
        trained.load_state_dict(state["model"], strict=True)
        trained.eval().set_plan(full_plan(recipe.architecture.visual_tokens))
        with torch.inference_mode():
            return max(_difference(trained, exported, inputs) for inputs in prompts)
    finally:
        stop_groups()


def _inputs(processor: Any, picture: Path, text: str) -> dict[str, Tensor]:
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
    with Image.open(picture) as image:
        return dict(processor(text=prompt, images=image.convert("RGB"), return_tensors="pt"))


def _difference(trained: MultimodalModel, exported: Any, inputs: dict[str, Tensor]) -> float:
    device = torch.cuda.current_device()
    tokens = inputs["input_ids"].to(device)
    slots = (tokens[0] == exported.config.image_token_id).nonzero().flatten()
    batch = Batch(
        tokens=tokens,
        labels=torch.full_like(tokens, -100),
        pixels=inputs["pixel_values"].to(device),
        image_rows=torch.zeros(1, dtype=torch.int64, device=device),
        image_starts=slots[:1],
        visual_tokens=len(slots),
    )
    own = trained(batch).float().cpu()
    theirs = exported(**inputs).logits.float().cpu()
    return float((own[..., : theirs.size(-1)] - theirs).abs().max())
