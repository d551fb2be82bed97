"""What the image is worth to an exported model: how much the loss of the answers rises when it is taken away."""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor


def image_worth(export: Path, rows: Sequence[dict[str, Any]], images: Path) -> dict[str, float]:
    """Loss of the answers with the image and without it, and their difference, in nats an answer token.

    rows: of test_questions.jsonl. The token that ends an answer counts, as it does in training. Without the image its
    placeholder is missing too: the model reads the question alone.
    """
    processor = AutoProcessor.from_pretrained(export, backend="pil", local_files_only=True, trust_remote_code=False)
    model = AutoModelForImageTextToText.from_pretrained(export, local_files_only=True, trust_remote_code=False).eval()
    losses: dict[bool, list[float]] = {True: [], False: []}
    with torch.inference_mode():
        for row in rows:
            with Image.open(images / row["image"]) as opened:
                image = opened.convert("RGB")
            for seen in losses:
                losses[seen].append(_loss(model, processor, row["text"], row["answer"], image if seen else None))
    difference = [without - seen for seen, without in zip(losses[True], losses[False], strict=True)]
    return {
        "loss": statistics.mean(losses[True]),
        "loss_without_image": statistics.mean(losses[False]),
        "worth": statistics.mean(difference),
        "standard_error": statistics.stdev(difference) / len(difference) ** 0.5 if len(difference) > 1 else 0.0,
    }


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
