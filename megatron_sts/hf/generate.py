"""Greedy answers of an exported model to prompts about pictures, many at a time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor, BatchEncoding

from megatron_sts.data import IMAGE_TOKEN, ImageReader, PixelCache, Turn
from megatron_sts.errors import ConversionError

# Questions about one picture are spread over the batches; this many bytes of processed pictures are kept.
_PIXEL_CACHE_BYTES = 256 * 2**20

Progress = Callable[[int, int], None]
"""Called with how many are done and how many there are."""


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt with one `<image>` for each of its pictures, which are paths relative to the image folder."""

    prompt: str
    images: tuple[str, ...] = ()


class Generator:
    """An exported model with its processor."""

    def __init__(
        self, model_dir: Path, device: str | torch.device | None = None, dtype: torch.dtype | None = None
    ) -> None:
        """Load the model.

        Args:
            model_dir: an exported model.
            device: None: the GPU where there is one.
            dtype: to compute in; None: as exported on a GPU, and float32 on a CPU, where it is the fastest.

        Raises:
            ConversionError: the directory holds no such model.
        """
        if not (model_dir / "config.json").is_file():
            raise ConversionError(
                f"{model_dir}: no config.json, so no exported model; make one with tools/convert.py export"
            )
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if dtype is None and self.device.type == "cpu":
            dtype = torch.float32
        try:
            # Contract: pictures are processed on Pillow, as in training; torchvision rounds otherwise.
            self.processor = AutoProcessor.from_pretrained(model_dir, backend="pil", local_files_only=True)
            model: Any = AutoModelForImageTextToText.from_pretrained(
                model_dir, dtype=dtype or "auto", local_files_only=True
            )
        except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
            raise ConversionError(
                f"{model_dir}: cannot be loaded ({error}); export it again with tools/convert.py export"
            ) from error
        self.model = model.to(self.device).eval()
        self.processor.tokenizer.padding_side = "left"

    def prompt(self, turns: Sequence[Turn]) -> str:
        """The prompt for the answer to the last of `turns`, in the model's own chat template."""
        messages = []
        for turn in turns:
            text = turn.text.replace(IMAGE_TOKEN, "").strip()
            content: list[dict[str, str]] = [{"type": "image"}] * turn.text.count(IMAGE_TOKEN)
            role = "user" if turn.role == "human" else "assistant"
            messages.append({"role": role, "content": [*content, {"type": "text", "text": text}]})
        rendered: str = self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return rendered

    def generate(
        self,
        requests: Sequence[Request],
        images_root: Path,
        max_new_tokens: int = 64,
        batch_size: int = 64,
        progress: Progress | None = None,
    ) -> list[str]:
        """The answers, in the order of the requests; each ends where the model ends it, or at the limit.

        Requests of equal length share a batch as far as possible: little is computed for padding.
        Raises DataError for a picture that cannot be read.
        """
        reader = ImageReader(self.processor.image_processor, images_root)
        cache = PixelCache(_PIXEL_CACHE_BYTES)
        tokenized = self._tokenize([request.prompt for request in requests])["input_ids"] if requests else []
        added_by_picture = self.model.config.image_seq_length - 1
        lengths = [
            len(tokens) + added_by_picture * len(request.images)
            for tokens, request in zip(tokenized, requests, strict=True)
        ]
        order = sorted(range(len(requests)), key=lambda index: (lengths[index], index))
        answers = [""] * len(requests)
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            batch = [requests[index] for index in chosen]
            pixels = [cache.get(image, reader.read) for request in batch for image in request.images]
            for index, answer in zip(chosen, self._answer(batch, pixels, max_new_tokens), strict=True):
                answers[index] = answer
            if progress is not None:
                progress(start + len(chosen), len(order))
        return answers

    @torch.inference_mode()
    def _answer(self, batch: Sequence[Request], pixels: list[Tensor], max_new_tokens: int) -> list[str]:
        inputs = self._tokenize([self._expand(request) for request in batch], padding=True, return_tensors="pt")
        inputs = inputs.to(self.device)
        if pixels:
            inputs["pixel_values"] = torch.stack(pixels).to(self.device, self.model.dtype)
        tokens = self.model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, use_cache=True)
        new = tokens[:, inputs["input_ids"].size(1) :]
        answers = self.processor.tokenizer.batch_decode(new, skip_special_tokens=True)
        return [answer.strip() for answer in answers]

    def _expand(self, request: Request) -> str:
        """The prompt with an `<image>` for every visual token of a picture, as the processor writes it."""
        assert request.prompt.count(IMAGE_TOKEN) == len(request.images)
        return request.prompt.replace(IMAGE_TOKEN, IMAGE_TOKEN * self.model.config.image_seq_length)

    def _tokenize(self, texts: list[str], **options: object) -> BatchEncoding:
        encoding: BatchEncoding = self.processor.tokenizer(texts, return_token_type_ids=False, **options)
        return encoding
