"""Checks that an exported directory is what it claims to be, by loading it as any user would."""

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from megatron_sts.errors import ConversionError


def verify_export(model_dir: Path) -> None:
    """Load the model and its processor and run both on one blank picture.

    Raises ConversionError where a weight is missing or unexpected, where the processor and the tower disagree
    on the number of visual tokens, or where a logit is not finite.
    """
    try:
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            model_dir, output_loading_info=True, local_files_only=True
        )
        model, info = loaded
        processor = AutoProcessor.from_pretrained(model_dir, local_files_only=True)
        messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}]
        prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
        inputs = processor(text=prompt, images=Image.new("RGB", (64, 48)), return_tensors="pt")
        with torch.inference_mode():
            logits = model.eval()(**inputs).logits
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise ConversionError(f"{model_dir}: does not load and run ({error}); export it again") from error
    problems = [f"{kind}: {sorted(map(str, found))[:10]}" for kind, found in info.items() if found]
    if problems:
        raise ConversionError(f"{model_dir}: loaded with {'; '.join(problems)}; export it again")
    if not torch.isfinite(logits).all():
        raise ConversionError(f"{model_dir}: a logit is not finite; the checkpoint diverged or is damaged")
