"""Checks that an exported directory is what it claims to be, by loading it as any user would.

With the checkpoint it was made of, both models' logits are compared too: at all visual tokens and all layers, in fp32.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

from megatron_sts.errors import ConversionError
from megatron_sts.hf.parity import checkpoint_logits, prompt_inputs

# With the same weights in fp32 only the order of sums differs between the two implementations.
LARGEST_DIFFERENCE = 1e-4
_QUESTION = "What is in the picture?"
_NEW_TOKENS = 24


@dataclass(frozen=True, slots=True)
class Verification:
    """What was found.

    answer: greedy, to a question about a synthetic picture. largest_logit: in absolute value. logit_difference: the
    largest to the checkpoint's model; None where there was no checkpoint.
    """

    answer: str
    largest_logit: float
    logit_difference: float | None

    def text(self) -> str:
        """What a user wants to know, in a few lines."""
        lines = ["verified: it loads with nothing missing or unexpected, and runs"]
        if self.logit_difference is not None:
            lines.append(
                "its logits and the checkpoint's, at all visual tokens and layers in fp32, differ by at most "
                f"{self.logit_difference:.1e} (largest logit {self.largest_logit:.1f})"
            )
        lines.append(f"a grey gradient and {_QUESTION!r}: {self.answer!r}")
        return "\n".join(lines)


def verify_export(model_dir: Path, checkpoint: Path | None = None, was_cast: bool = False) -> Verification:
    """Load the model and its processor, run both on a picture, and compare with the checkpoint's model.

    Both models are in memory, in fp32. was_cast: the export has another dtype than the checkpoint, whose rounding is
    then measured and not judged.

    Raises ConversionError where a weight is missing or unexpected, where processor and tower disagree on the number
    of visual tokens, where a logit is not finite, or where logits differ by more than 1e-4 of the largest (of 1, where
    all are smaller).
    """
    picture = Image.radial_gradient("L").resize((64, 48)).convert("RGB")
    try:
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            model_dir,
            dtype=torch.float32,
            output_loading_info=True,
            local_files_only=True,
            trust_remote_code=False,
        )
        model, info = loaded
        processor = AutoProcessor.from_pretrained(
            model_dir, backend="pil", local_files_only=True, trust_remote_code=False
        )
        inputs = prompt_inputs(processor, picture, _QUESTION)
        with torch.inference_mode():
            logits: Tensor = model.eval()(**inputs).logits
            answer = model.generate(**inputs, max_new_tokens=_NEW_TOKENS, do_sample=False)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise ConversionError(f"{model_dir}: does not load and run ({error}); export it again") from error
    problems = [f"{kind}: {sorted(map(str, found))[:10]}" for kind, found in info.items() if found]
    if problems:
        raise ConversionError(f"{model_dir}: loaded with {'; '.join(problems)}; export it again")
    if not torch.isfinite(logits).all():
        raise ConversionError(f"{model_dir}: a logit is not finite; the checkpoint diverged or is damaged")

    difference = None
    if checkpoint is not None:
        with checkpoint_logits(checkpoint) as logits_of, torch.inference_mode():
            difference = float((logits - logits_of(inputs, model.config.image_token_id)).abs().max())
    largest = float(logits.abs().max())
    if difference is not None and not was_cast and difference > LARGEST_DIFFERENCE * max(1.0, largest):
        raise ConversionError(
            f"{model_dir}: its logits differ from those of {checkpoint} by {difference:.1e}, more than rounding makes "
            f"(largest logit {largest:.1f}); export it again, and report this"
        )
    text = processor.decode(answer[0, inputs["input_ids"].size(1) :], skip_special_tokens=True).strip()
    return Verification(text, largest, difference)
