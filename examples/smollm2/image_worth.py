"""What the image is worth to an exported model: how much the loss of the answers rises with a wrong one."""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor


def image_worth(export: Path, rows: Sequence[dict[str, Any]], images: Path) -> dict[str, float]:
    """Loss of the answers with the image, without it, and with the image of another question, in nats an answer token.

    rows: of test_questions.jsonl. The token that ends an answer counts, as it does in training.
    worth: with another question's image less with the own one. Without any image the placeholder is missing too, a
    prompt that training never showed: even the loss of a model of random weights changes by 0.4 then.
    """
    processor = AutoProcessor.from_pretrained(export, backend="pil", local_files_only=True, trust_remote_code=False)
    model = AutoModelForImageTextToText.from_pretrained(export, local_files_only=True, trust_remote_code=False).eval()
    own: list[float] = []
    without: list[float] = []
    other: list[float] = []
    with torch.inference_mode():
        for number, row in enumerate(rows):
            # Half of the questions away, so that it is not the same image with another question.
            stranger = rows[(number + len(rows) // 2) % len(rows)]
            for losses, image in ((own, row["image"]), (without, None), (other, stranger["image"])):
                losses.append(_loss(model, processor, row["text"], row["answer"], _open(images, image)))
    difference = [wrong - right for right, wrong in zip(own, other, strict=True)]
    return {
        "loss": statistics.mean(own),
        "loss_without_image": statistics.mean(without),
        "loss_with_another_image": statistics.mean(other),
        "worth": statistics.mean(difference),
        "standard_error": statistics.stdev(difference) / len(difference) ** 0.5 if len(difference) > 1 else 0.0,
    }


def _open(images: Path, image: str | None) -> Image.Image | None:
    if image is None:
        return None
    with Image.open(images / image) as opened:
        return opened.convert("RGB")


def _loss(model: Any, processor: Any, question: str, answer: str, image: Image.Image | None) -> float:
    """Mean loss of the answer's tokens, its end included."""
    content = [{"type": "image"}] if image is not None else []
    messages = [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
    inputs = dict(processor(text=prompt, images=image, return_tensors="pt"))
    end = model.generation_config.eos_token_id
    end = end if isinstance(end, int) else end[-1]
    tokens = [*processor.tokenizer(answer, add_special_tokens=False).input_ids, end]
    inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([tokens])], dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    logits = model(**inputs).logits[0, -len(tokens) - 1 : -1]
    return float(torch.nn.functional.cross_entropy(logits, torch.tensor(tokens)))


def read_questions(file: Path) -> list[dict[str, Any]]:
    """The rows of a jsonl file."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
