"""What the image is worth to an exported model: how much the loss of the answers rises with a wrong one."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

BATCH = 20


def image_worth(export: Path, rows: Sequence[dict[str, Any]], images: Path) -> dict[str, float]:
    """Loss of the answers with the image, without it, and with the image of another question, in nats an answer token.

    rows: of test_questions.jsonl. The token that ends an answer counts, as it does in training.
    worth: with another question's image less with the own one. Without any image the placeholder is missing too, a
    prompt that training never showed: even the loss of a model of random weights changes by 0.4 then.
    """
    processor = AutoProcessor.from_pretrained(export, backend="pil", local_files_only=True, trust_remote_code=False)
    processor.tokenizer.padding_side = "left"
    model = AutoModelForImageTextToText.from_pretrained(export, local_files_only=True, trust_remote_code=False).eval()
    # Half of the questions away, so that it is not the same image with another question.
    strangers = [rows[(number + len(rows) // 2) % len(rows)]["image"] for number in range(len(rows))]
    own, other, without = (
        _losses(model, processor, rows, shown)
        for shown in (
            [_open(images / row["image"]) for row in rows],
            [_open(images / image) for image in strangers],
            None,
        )
    )
    difference = [wrong - right for right, wrong in zip(own, other, strict=True)]
    return {
        "loss": statistics.mean(own),
        "loss_without_image": statistics.mean(without),
        "loss_with_another_image": statistics.mean(other),
        "worth": statistics.mean(difference),
        "standard_error": statistics.stdev(difference) / len(difference) ** 0.5 if len(difference) > 1 else 0.0,
    }


def _open(file: Path) -> Image.Image:
    with Image.open(file) as opened:
        return opened.convert("RGB")


@torch.inference_mode()
def _losses(
    model: Any, processor: Any, rows: Sequence[dict[str, Any]], shown: Sequence[Image.Image] | None
) -> list[float]:
    """Of each question the mean loss of its answer's tokens, the end included. shown: an image for each, or none."""
    ends = model.generation_config.eos_token_id
    end = ends if isinstance(ends, int) else ends[-1]
    content = [] if shown is None else [{"type": "image"}]
    losses = []
    for start in range(0, len(rows), BATCH):
        part = rows[start : start + BATCH]
        prompts = [
            processor.apply_chat_template(
                [{"role": "user", "content": [*content, {"type": "text", "text": row["text"]}]}],
                add_generation_prompt=True,
            )
            for row in part
        ]
        images = None if shown is None else list(shown[start : start + BATCH])
        inputs = dict(processor(text=prompts, images=images, padding=True, return_tensors="pt"))
        answers = [[*processor.tokenizer(row["answer"], add_special_tokens=False).input_ids, end] for row in part]
        # Prompts are padded on the left, answers on the right, where nothing before looks at them.
        longest = max(map(len, answers))
        padded = torch.tensor([[*answer, *[end] * (longest - len(answer))] for answer in answers])
        tokens = inputs["input_ids"] = torch.cat([inputs["input_ids"], padded], dim=1)
        inputs["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones_like(padded)], dim=1)
        logits = model(**inputs, logits_to_keep=longest + 1).logits[:, :-1]
        for answer, found, expected in zip(answers, logits, tokens[:, -longest:], strict=True):
            count = len(answer)
            losses.append(float(torch.nn.functional.cross_entropy(found[:count], expected[:count])))
    return losses
