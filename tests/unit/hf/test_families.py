"""Shows, for every tower and language family, that an imported model computes what transformers computes, trains alike
in every layout, and goes back bitwise.

The models are transformers' own, tiny and random. In fp32 only the order of sums differs between the implementations.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoTokenizer, LlavaForConditionalGeneration

from megatron_sts.config import Recipe, checkpoint_root, load_recipe
from megatron_sts.data import Batch
from megatron_sts.hf import ImportOptions, export_checkpoint, import_llava
from megatron_sts.hf.families import LANGUAGES
from megatron_sts.model.build import build_chunks
from megatron_sts.model.mllm import MultimodalModel
from megatron_sts.parallel.groups import group_collection, start_groups
from megatron_sts.parallel.watchdog import Watchdog
from megatron_sts.sts import full_plan
from megatron_sts.train.checkpoint import load_checkpoint
from megatron_sts.train.loop import Running, train_stage
from megatron_sts.train.resume import Start
from megatron_sts.train.stage_data import StageData
from megatron_sts.train.stopping import StopRequests
from tests.ranks import run_ranks
from tests.tiny import tiny_data, tiny_tokenizer
from tests.unit.hf.sources import IMAGE_TOKEN_ID, VISUAL_TOKENS, VOCABULARY, make_llava, nothing, write_llava

TOWERS = ("clip", "siglip", "siglip2", "dinov2")
COMBINATIONS = [(tower, family) for tower in TOWERS for family in LANGUAGES]
# One of each family, every tower.
TRAINED = [
    ("clip", "llama"),
    ("siglip", "mistral"),
    ("siglip2", "qwen2"),
    ("clip", "qwen3"),
    ("siglip", "phi3"),
    ("siglip", "phi"),
    ("siglip", "gemma"),
    ("dinov2", "llama"),
]
PROMPT = [1, 6, *[IMAGE_TOKEN_ID] * VISUAL_TOKENS, 7, 20, 9, 30, 11]
NEW_TOKENS = 6


@dataclass(frozen=True)
class Case:
    """A model of transformers' and the checkpoint that was imported of it."""

    model: LlavaForConditionalGeneration
    checkpoint: Path
    recipe: Path


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, a tokenizer and a picture's pixels."""
    directory = tmp_path_factory.mktemp("families")
    tiny_data(directory)
    tiny_tokenizer(directory / "tokenizer")
    return directory


@pytest.fixture(scope="module")
def cases(root: Path) -> dict[tuple[str, str], Case]:
    made = {}
    tokenizer = AutoTokenizer.from_pretrained(root / "tokenizer")
    for tower, family in COMBINATIONS:
        directory = root / f"{tower}-{family}"
        model = make_llava(tower, family)
        write_llava(model, directory / "hf", tokenizer)
        import_llava(directory / "hf", directory / "init", ImportOptions(), nothing)
        made[tower, family] = Case(model, directory / "init", _write_recipe(root, directory, tower))
    return made


def _write_recipe(root: Path, directory: Path, tower: str) -> Path:
    """What a user writes: the model is named once. DINOv2 is trained too."""
    trains = ["projector", "language", *(["vision"] if tower == "dinov2" else [])]
    rates = ", ".join(f"{part}: 1.0e-3" for part in trains)
    recipe = directory / "recipe.yaml"
    recipe.write_text(f"""
output_dir: {directory}/run
seed: 5
precision: fp32
model: {{init: {directory}/init}}
logging: {{every_steps: 100, tensorboard: false}}
stages:
  - name: tune
    data: {{train: {root}/train.json, images: {root}/images, system_prompt: "", max_tokens: 100}}
    trains: [{", ".join(trains)}]
    steps: 2
    batch: {{global: 4, micro: 2}}
    learning_rate: {{{rates}}}
    learning_rate_schedule: {{warmup_steps: 0, decay: constant}}
""")
    return recipe


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    return torch.randn(1, 3, 28, 28, generator=torch.Generator().manual_seed(3))


def _own_logits(model: MultimodalModel, tokens: list[int], pixels: Tensor) -> Tensor:
    """[s, V], all layers and visual tokens."""
    batch = Batch(
        tokens=torch.tensor([tokens]),
        labels=torch.full((1, len(tokens)), -100),
        pixels=pixels,
        image_rows=torch.zeros(1, dtype=torch.int64),
        image_starts=torch.tensor([tokens.index(IMAGE_TOKEN_ID)]),
        visual_tokens=VISUAL_TOKENS,
        image_samples=torch.zeros(1, 2, dtype=torch.int64),
        guides=torch.zeros(1, 0, dtype=torch.int64),
    )
    model.eval().set_plan(full_plan(VISUAL_TOKENS))
    with torch.no_grad():
        return model(batch)[0, :, :VOCABULARY]


def _loaded(recipe: Recipe, checkpoint: Path) -> MultimodalModel:
    start_groups(recipe.parallel, recipe.seed)
    chunks = build_chunks(recipe, group_collection(), draw_weights=False)
    load_checkpoint(checkpoint, chunks)
    return chunks[0]


def _forward_all(recipes: list[Recipe], pixels: Tensor) -> list[np.ndarray]:
    return [_own_logits(_loaded(recipe, recipe.model.init), PROMPT, pixels).numpy() for recipe in recipes]  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def own_logits(cases: dict[tuple[str, str], Case], pixels: Tensor) -> dict[tuple[str, str], np.ndarray]:
    """Of every imported checkpoint, in one process."""
    recipes = [load_recipe(case.recipe) for case in cases.values()]
    (found,) = run_ranks(1, _forward_all, recipes, pixels)
    return dict(zip(cases, found, strict=True))


def _their_logits(model: Any, pixels: Tensor) -> Tensor:
    with torch.inference_mode():
        return model(input_ids=torch.tensor([PROMPT]), pixel_values=pixels).logits[0]


@pytest.mark.parametrize(("tower", "family"), COMBINATIONS)
def test_the_imported_model_computes_what_transformers_computes(
    cases: dict[tuple[str, str], Case],
    own_logits: dict[tuple[str, str], np.ndarray],
    pixels: Tensor,
    tower: str,
    family: str,
) -> None:
    expected = _their_logits(cases[tower, family].model, pixels)
    assert expected.std() > 0.1
    torch.testing.assert_close(torch.from_numpy(own_logits[tower, family]), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("tower", "family"), COMBINATIONS)
def test_import_and_export_give_back_the_same_tensors(
    cases: dict[tuple[str, str], Case], tmp_path: Path, tower: str, family: str
) -> None:
    case = cases[tower, family]
    report = export_checkpoint(case.checkpoint, tmp_path / "model")
    expected = dict(_file_names(case.model))
    if tower == "dinov2":
        # Files go by other names than the model's, those that transformers itself writes.
        written = load_file(case.checkpoint.parent / "hf" / "model.safetensors")
        expected = {name: tensor for name, tensor in expected.items() if not name.startswith("vision_tower.")}
        expected |= {name: tensor for name, tensor in written.items() if name.startswith("vision_tower.")}
    found = load_file(tmp_path / "model" / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    carried = {row.tensor for row in report.details.rows if row.kind == "carried"}
    norm = "vision_tower.layernorm.weight" if tower == "dinov2" else "vision_tower.vision_model.post_layernorm.weight"
    assert norm in carried
    layer = ".layer" if tower == "dinov2" else ".layers"
    assert {name for name in carried if f"{layer}.2." in name}
    assert not {name for name in carried if f"{layer}.1." in name}
    model, info = AutoModelForImageTextToText.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(info.values()), info
    assert _same_config(model.config.text_config, case.model.config.text_config)


def _file_names(model: LlavaForConditionalGeneration) -> Iterator[tuple[str, Tensor]]:
    tied = model.config.tie_word_embeddings
    for name, tensor in model.state_dict().items():
        if name.startswith("model.vision_tower."):
            yield name.replace("model.vision_tower.", "vision_tower.vision_model."), tensor
        elif name.startswith("model.multi_modal_projector."):
            yield name.removeprefix("model."), tensor
        elif name.startswith("model.language_model."):
            yield name.replace("model.language_model.", "language_model.model."), tensor
        elif not tied:
            yield f"language_model.{name}", tensor


def _same_config(found: Any, expected: Any) -> bool:
    names = ("model_type", "vocab_size", "hidden_size", "rms_norm_eps", "max_position_embeddings", "sliding_window")
    same = all(getattr(found, name, None) == getattr(expected, name, None) for name in names)
    return same and found.rope_parameters == expected.rope_parameters


def _train(recipes: list[Recipe], pixels: Tensor) -> list[dict[str, Any]]:
    """Two steps from each imported checkpoint: losses, and in one process logits and greedy tokens afterwards."""
    results = []
    for recipe in recipes:
        place = start_groups(recipe.parallel, recipe.seed)
        stage = recipe.stages[0]
        data = StageData(recipe, stage)
        running = Running(StopRequests(recipe), Watchdog(place, recipe.parallel.timeout_minutes * 60))
        train_stage(recipe, stage, data, Start(recipe.model.init, 0), place, running)
        result: dict[str, Any] = {}
        if place.world_size == 1:
            model = _loaded(recipe, checkpoint_root(recipe) / "tune-00000002")
            result["logits"] = _own_logits(model, PROMPT, pixels).numpy()
            result["greedy"] = _greedy(model, pixels)
        results.append(result)
    return results


def _greedy(model: MultimodalModel, pixels: Tensor) -> list[int]:
    """The likeliest next token over and over, each by a whole forward pass, up to the end of the sequence."""
    tokens = list(PROMPT)
    while len(tokens) < len(PROMPT) + NEW_TOKENS and tokens[-1] != 2:
        tokens.append(int(_own_logits(model, tokens, pixels)[-1].argmax()))
    return tokens[len(PROMPT) :]


def _recipes(cases: dict[tuple[str, str], Case], chosen: list[tuple[str, str]], run: str, *layout: str) -> list[Recipe]:
    return [
        load_recipe(cases[key].recipe, [f"output_dir={cases[key].checkpoint.parent}/{run}", *layout]) for key in chosen
    ]


def _figures(recipe: Recipe) -> np.ndarray:
    """Loss and gradient norm of each step."""
    lines = [json.loads(line) for line in (recipe.output_dir / "metrics.jsonl").read_text().splitlines()]
    return np.array([[line["loss"], line["grad_norm"]] for line in lines])


@pytest.fixture(scope="module")
def trained(cases: dict[tuple[str, str], Case], pixels: Tensor) -> dict[tuple[str, str], tuple[Recipe, dict[str, Any]]]:
    recipes = _recipes(cases, TRAINED, "run")
    (results,) = run_ranks(1, _train, recipes, pixels)
    return dict(zip(TRAINED, zip(recipes, results, strict=True), strict=True))


@pytest.mark.parametrize(("tower", "family"), TRAINED)
def test_the_export_of_a_trained_model_computes_and_says_what_the_model_does(
    cases: dict[tuple[str, str], Case],
    trained: dict[tuple[str, str], tuple[Recipe, dict[str, Any]]],
    pixels: Tensor,
    tmp_path: Path,
    tower: str,
    family: str,
) -> None:
    recipe, result = trained[tower, family]
    export_checkpoint(checkpoint_root(recipe) / "tune-00000002", tmp_path / "model")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "model").eval()
    found = _their_logits(model, pixels)
    torch.testing.assert_close(found, torch.from_numpy(result["logits"]), rtol=1e-4, atol=1e-4)
    assert (found - _their_logits(cases[tower, family].model, pixels)).abs().max() > 1e-3
    with torch.inference_mode():
        generated = model.generate(
            input_ids=torch.tensor([PROMPT]), pixel_values=pixels, max_new_tokens=NEW_TOKENS, do_sample=False
        )
    assert generated[0, len(PROMPT) :].tolist() == result["greedy"]


@pytest.mark.parametrize(
    ("layout", "chosen"),
    [
        (("parallel.tensor=2", "parallel.sequence_parallel=true"), TRAINED),
        (("parallel.pipeline=2",), [("siglip2", "qwen2"), ("clip", "qwen3")]),
        (("parallel.pipeline=2", "parallel.virtual_pipeline=2"), [("clip", "qwen3")]),
    ],
    ids=["tensor and sequence", "pipeline", "interleaved"],
)
def test_other_layouts_train_alike(
    cases: dict[tuple[str, str], Case],
    trained: dict[tuple[str, str], tuple[Recipe, dict[str, Any]]],
    pixels: Tensor,
    layout: tuple[str, ...],
    chosen: list[tuple[str, str]],
) -> None:
    """Loss and gradient norm of two steps: the forward pass, and every gradient of the first step's update."""
    recipes = _recipes(cases, chosen, "-".join(("run", *layout)), *layout)
    run_ranks(2, _train, recipes, pixels)
    for key, recipe in zip(chosen, recipes, strict=True):
        np.testing.assert_allclose(_figures(recipe), _figures(trained[key][0]), rtol=2e-5, err_msg=str(key))
