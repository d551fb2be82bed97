"""Shows what text_guided chooses by, in real forward and backward passes, over layouts: questions, never answers.

Eight patches of each picture are bright and eight dark, and half of them is kept: the scores of the two kinds are so
far apart that no layout's rounding changes what is kept.
"""

import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

from megatron_sts.config import Recipe
from megatron_sts.model.compressor import STRATEGIES, ImageContext, guide_scores, keep_text_guided
from megatron_sts.parallel.groups import start_groups
from megatron_sts.sts import StepPlan
from megatron_sts.train.loop import prepare_stage
from megatron_sts.train.resume import Start
from megatron_sts.train.stage_data import StageData
from tests.parallel.observe import step_inputs
from tests.ranks import run_ranks
from tests.tiny import tiny_data, tiny_recipe, tiny_tokenizer

LAYOUTS = {
    "one process": (1, {}),
    "tp2_sp": (2, {"tensor": 2, "sequence_parallel": True}),
    "tp2_sp_cp2": (4, {"tensor": 2, "sequence_parallel": True, "context": 2}),
}
DATA = {"vicuna": {}, "plain": {"template": "plain"}, "packed": {"packing": True}}
OTHER = {"red": "blue", "green": "dark", "blue": "light", "dark": "red", "light": "green"}

Chosen = dict[tuple[int, int], tuple[list[int], list[float], list[float]]]
"""By sample and place of the image in it: tokens kept, scores of all tokens, features of the kept ones."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("text_guided")
    tiny_tokenizer(root / "tokenizer")
    records = json.loads(tiny_data(root).read_text())
    generator = np.random.default_rng(3)
    for record in records:
        if "image" in record:
            Image.fromarray(_picture(generator)).save(root / "images" / record["image"])
    _write(root / "answers.json", records, 1, lambda text: " ".join(OTHER[word] for word in text.split()))
    _write(root / "questions.json", records, 0, lambda text: text.replace("describe it", "what is left and right"))
    return root


def _write(path: Path, records: list[dict[str, Any]], turn: int, change: Any) -> None:
    changed = json.loads(json.dumps(records))
    for record in changed:
        record["conversations"][turn]["value"] = change(record["conversations"][turn]["value"])
    path.write_text(json.dumps(changed))


def _picture(generator: np.random.Generator) -> np.ndarray:
    """[56, 56, 3]: 4 x 4 patches in a drawn order, each of noise that is bright or dark."""
    bright = generator.permutation(np.repeat([0, 200], 8)).reshape(4, 4).repeat(14, 0).repeat(14, 1)
    return (bright[:, :, None] + generator.integers(0, 55, (56, 56, 3))).astype(np.uint8)


def _choose(recipes: list[Recipe]) -> list[tuple[float, Chosen]]:
    """For each recipe loss and choices of the first step on this rank."""
    found = []
    for recipe in recipes:
        place, stage = start_groups(recipe.parallel, recipe.seed), recipe.stage("tune")
        data = StageData(recipe, stage)
        parts = prepare_stage(recipe, stage, 1, Start(None, 0), place)
        (given,) = step_inputs(data, place, 1)
        chosen: Chosen = {}
        with patch.dict(STRATEGIES, {"text_guided": _Recorder(chosen)}):
            sums = parts.step.forward_backward(given)
        found.append((sums.loss, chosen))
    return found


class _Recorder:
    def __init__(self, chosen: Chosen):
        self.chosen = chosen

    def __call__(self, features: Tensor, plan: StepPlan, images: ImageContext) -> Tensor:
        kept = keep_text_guided(features, plan, images)
        assert images.guides is not None
        projected = images.project(features.flatten(0, 1)).unflatten(0, features.shape[:2])
        scores = guide_scores(projected, images.guides)
        tokens = (kept[:, :, None] == features[:, None]).all(dim=3).long().argmax(dim=2)
        for number, (sample, place) in enumerate(images.samples.tolist()):
            assert (sample, place) not in self.chosen
            values = (tokens[number], scores[number], kept[number].flatten())
            self.chosen[sample, place] = tuple(tensor.tolist() for tensor in values)
        return kept


@pytest.fixture(scope="module")
def found(root: Path) -> dict[tuple[str, str, str], tuple[float, Chosen]]:
    """By layout, kind of data and file: loss of the step, and what was chosen on all ranks together."""
    result = {}
    for layout, (ranks, parallel) in LAYOUTS.items():
        files = ("train", "answers") if parallel else ("train", "answers", "questions")
        names = [(data, file) for data in DATA for file in files]
        recipes = [
            tiny_recipe(
                root,
                parallel=parallel,
                tune__batch={"global": 6, "micro": 2},
                tune__compress={"strategy": "text_guided"},
                tune__data=DATA[data] | {"train": str(root / f"{file}.json")},
            )
            for data, file in names
        ]
        for name, of_ranks in zip(names, zip(*run_ranks(ranks, _choose, recipes), strict=True), strict=True):
            whole: Chosen = {}
            for _, chosen in of_ranks:
                # The ranks share the images out: each is seen by one.
                assert not whole.keys() & chosen.keys()
                whole |= chosen
            result[layout, *name] = of_ranks[0][0], whole
    return result


@pytest.mark.parametrize("data", DATA)
def test_other_answers_change_the_loss_and_not_a_bit_of_what_is_kept_as_other_questions_do(found, data):
    for layout in (layout for layout in LAYOUTS if (layout, data, "train") in found):
        loss, chosen = found[layout, data, "train"]
        other_loss, same = found[layout, data, "answers"]
        assert other_loss != loss and same == chosen and len(chosen) > 3
    _, chosen = found["one process", data, "train"]
    _, asked = found["one process", data, "questions"]
    assert any(asked[image][1] != scores for image, (_, scores, _) in chosen.items())


def test_layout_template_and_packing_change_no_choice_by_a_margin_that_rounding_cannot_reach(found):
    _, expected = found["one process", "vicuna", "train"]
    for (_, _, file), (_, chosen) in found.items():
        if file != "train":
            continue
        assert chosen.keys() == expected.keys()
        for image, (tokens, scores, _) in chosen.items():
            ordered = np.sort(scores)[::-1]
            margin, rounding = ordered[7] - ordered[8], np.abs(np.subtract(scores, expected[image][1])).max()
            assert tokens == expected[image][0] == sorted(np.argsort(scores)[8:].tolist())
            assert margin > 1e-2 and rounding < 1e-5
