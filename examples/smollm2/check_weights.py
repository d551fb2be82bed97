"""Checks that the converted weights are what they should be: the model answers, the tower's features tell digits.

language   the loss of a paragraph of English, and the answers to questions that anybody can judge
tower      nearest neighbors (5) of the mean patch features of scikit-learn's digits, 1,200 known and 597 asked
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common.scans import scans

QUESTIONS = {
    "What is the capital of France?": ("paris",),
    "What color is the sky on a clear day?": ("blue",),
    "How many days are in a week?": ("seven", "7"),
}
ENGLISH = (
    "Photosynthesis is the process by which green plants, algae and some bacteria turn sunlight, water and carbon "
    "dioxide into oxygen and sugar. The light is absorbed by chlorophyll in the chloroplasts of the leaves. The sugar "
    "is used as food by the plant or stored as starch for later use."
)
# A broken conversion gives the loss of guessing, ln(49152) = 10.8, or more.
HIGHEST_LOSS = 3.5
KNOWN = 1200
IMAGE_SIZE = 28
FEATURE_LAYER = 6
LEAST_ACCURACY = 0.75


def check_language(directory: Path) -> dict[str, Any]:
    """Loss of English and answers of a converted language model."""
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(directory, local_files_only=True).eval()
    answers = {}
    with torch.inference_mode():
        tokens = tokenizer(ENGLISH, return_tensors="pt").input_ids
        loss = float(model(tokens, labels=tokens).loss)
        for question in QUESTIONS:
            prompt = tokenizer.apply_chat_template(
                [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False
            )
            tokens = tokenizer(prompt, return_tensors="pt").input_ids
            answer = model.generate(tokens, max_new_tokens=24, do_sample=False)
            answers[question] = tokenizer.decode(answer[0, tokens.size(1) :], skip_special_tokens=True).strip()
    right = sum(any(word in answers[question].lower() for word in words) for question, words in QUESTIONS.items())
    return {"loss": loss, "answers": answers, "right": right}


def check_tower(directory: Path) -> float:
    """Share of digits whose five nearest neighbors say the right label; by chance 0.1."""
    tower = AutoModel.from_pretrained(directory, local_files_only=True).eval()
    images, labels = scans()
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))

    def pixels(scan: np.ndarray) -> Tensor:
        resized = Image.fromarray(scan).resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC).convert("RGB")
        return (torch.from_numpy(np.array(resized)).permute(2, 0, 1) / 255 - mean) / deviation

    with torch.inference_mode():
        features = torch.cat(
            [
                tower(torch.stack([pixels(scan) for scan in part]), output_hidden_states=True)
                .hidden_states[FEATURE_LAYER][:, 1:]
                .mean(1)
                for part in np.array_split(images, 30)
            ]
        )
    nearest = torch.cdist(features[KNOWN:], features[:KNOWN]).topk(5, largest=False).indices
    votes = torch.from_numpy(labels[:KNOWN])[nearest].mode(dim=1).values
    return float((votes == torch.from_numpy(labels[KNOWN:])).float().mean())


def check(language_directory: Path, tower_directory: Path, output: Path) -> None:
    """Check both, print, and write what was found as json; ends the program where it is not what it should be."""
    language, accuracy = check_language(language_directory), check_tower(tower_directory)
    right = f"{language['right']} of {len(QUESTIONS)}"
    print(f"language model: loss of English {language['loss']:.2f}; {right} questions right")
    for question, answer in language["answers"].items():
        print(f"  {question}  {answer}")
    print(f"tower: nearest neighbors name {accuracy:.1%} of the digits (10% by chance)")
    if language["loss"] > HIGHEST_LOSS or not language["right"] or accuracy < LEAST_ACCURACY:
        sys.exit(
            "error: these are not the weights that were expected; remove runs/smollm2 and run the same command again"
        )
    output.write_text(json.dumps({"language": language, "tower_accuracy": accuracy}, indent=1) + "\n")
