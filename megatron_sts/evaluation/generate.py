"""Greedy answers of an exported model to prompts about pictures, many at a time."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor, BatchEncoding

from megatron_sts.arguments import DTYPES
from megatron_sts.data import IMAGE_TOKEN, ImageReader, PixelCache, Turn, adds_special_tokens, placed_images
from megatron_sts.errors import ConfigError, ConversionError

# Questions about one picture are spread over the batches; this many bytes of processed pictures are kept.
_PIXEL_CACHE_BYTES = 256 * 2**20
# Requests whose lengths fall into one stretch of so many tokens count as equally long.
_LENGTH_STEP = 16

Progress = Callable[[int, int], None]
"""Called with how many are done and how many there are."""


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt with one `<image>` for each of its pictures, which are paths relative to the image folder."""

    prompt: str
    images: tuple[str, ...] = ()


def choose_device(name: str | None) -> str:
    """The device asked for, else the GPU where there is one; ConfigError where there is no such device."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise ConfigError(f"--device: found {name!r} ({error}); give cpu or cuda:0, for example") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"--device: found {name!r}, but there are {torch.cuda.device_count()} GPUs; give another")
    return str(device)


def choose_dtype(device: str, name: str = "auto") -> str:
    """The dtype to compute in: the one asked for; `auto` is bfloat16 on a GPU that has it, else float32.

    A CPU with AVX2 alone multiplies matrices of prompt length five times slower in bfloat16; those that do it in
    hardware (AMX, AVX512-BF16) may be asked for it.
    """
    if name not in ("auto", *DTYPES):
        raise ConfigError(f"--dtype: found {name!r}; choose from auto, {', '.join(DTYPES)}")
    if name != "auto":
        return name
    return "bfloat16" if device.startswith("cuda") and torch.cuda.is_bf16_supported() else "float32"


class Generator:
    """An exported model with its processor."""

    def __init__(self, model_dir: Path, device: str | None = None, dtype: str = "auto") -> None:
        """Load the model.

        Args:
            model_dir: an exported model.
            device, dtype: as `choose_device` and `choose_dtype` take them.

        Raises:
            ConversionError: the directory holds no such model.
            ConfigError: there is no such device or dtype.
        """
        if not (model_dir / "config.json").is_file():
            raise ConversionError(
                f"{model_dir}: no config.json, so no exported model; make one with tools/convert.py export"
            )
        self.device = torch.device(choose_device(device))
        self.dtype: torch.dtype = getattr(torch, choose_dtype(str(self.device), dtype))
        try:
            # Contract: pictures are processed on Pillow, as in training; torchvision rounds otherwise.
            self.processor = AutoProcessor.from_pretrained(
                model_dir, backend="pil", local_files_only=True, trust_remote_code=False
            )
            model: Any = AutoModelForImageTextToText.from_pretrained(
                model_dir, dtype=self.dtype, local_files_only=True, trust_remote_code=False
            )
        except (OSError, ValueError, KeyError, TypeError, ImportError, SafetensorError) as error:
            raise ConversionError(
                f"{model_dir}: cannot be loaded ({error}); export it again with tools/convert.py export"
            ) from error
        self.model = model.to(self.device).eval()
        self.processor.tokenizer.padding_side = "left"

    def prompt(self, turns: Sequence[Turn], system: str | None = None) -> str:
        """The prompt for the answer to the last of `turns`, in the model's own chat template.

        system: system prompt of the conversation; None: that of the training.
        """
        messages = [] if system is None else [{"role": "system", "content": _parts(system)}]
        for turn in turns:
            messages.append({"role": "user" if turn.role == "human" else "assistant", "content": _parts(turn.text)})
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
        """The answers, in the order of the requests; see `answers`."""
        found = [""] * len(requests)
        for done, (index, answer) in enumerate(self.answers(requests, images_root, max_new_tokens, batch_size), 1):
            found[index] = answer
            if progress is not None:
                progress(done, len(requests))
        return found

    def answers(
        self, requests: Sequence[Request], images_root: Path, max_new_tokens: int = 64, batch_size: int = 64
    ) -> Iterator[tuple[int, str]]:
        """Each request's number with its answer, a batch after another, as soon as they are there.

        An answer ends where the model ends it, or at the limit. Requests of about equal length share a batch, so
        that little is computed for padding, and among them those about one picture, so that it is read once.
        Raises DataError for a picture that cannot be read, ConfigError where a batch does not fit the GPU.
        """
        reader = ImageReader(self.processor.image_processor, images_root)
        cache = PixelCache(_PIXEL_CACHE_BYTES)
        tokenized = self._tokenize([request.prompt for request in requests])["input_ids"] if requests else []
        added_by_picture = self.model.config.image_seq_length - 1
        lengths = [
            len(tokens) + added_by_picture * len(request.images)
            for tokens, request in zip(tokenized, requests, strict=True)
        ]
        order = sorted(
            range(len(requests)), key=lambda index: (lengths[index] // _LENGTH_STEP, requests[index].images, index)
        )
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            batch = [requests[index] for index in chosen]
            shown = [image for request in batch for image in request.images]
            pixels = {image: cache.get(image, reader.read) for image in dict.fromkeys(shown)}
            try:
                answers = self._answer(batch, [pixels[image] for image in shown], max_new_tokens)
            except torch.cuda.OutOfMemoryError as error:
                raise ConfigError(
                    f"--batch-size: {batch_size} requests do not fit the memory of {self.device}; give a smaller one"
                ) from error
            yield from zip(chosen, answers, strict=True)

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
        tokenizer = self.processor.tokenizer
        # Contract: `encode` decides so in training; the texts of one model all begin alike.
        adds = not texts or adds_special_tokens(texts[0], tokenizer)
        encoding: BatchEncoding = tokenizer(texts, return_token_type_ids=False, add_special_tokens=adds, **options)
        return encoding


def _parts(text: str) -> list[dict[str, str]]:
    """A text with `<image>` marks as the parts of a chat's message."""
    parts: list[dict[str, str]] = []
    rest = placed_images(text)
    # Templates that are not ours set a line break of their own behind the pictures that come first.
    while rest.startswith(IMAGE_TOKEN):
        parts, rest = [*parts, {"type": "image"}], rest.removeprefix(IMAGE_TOKEN).lstrip()
    for number, between in enumerate(rest.split(IMAGE_TOKEN)):
        parts += [{"type": "image"}] if number else []
        parts += [{"type": "text", "text": between}] if between else []
    return parts
