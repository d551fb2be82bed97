"""Shows that the Mipha-3B recipes are the published training of the published sizes."""

from pathlib import Path

from megatron_sts.config import load_recipe
from megatron_sts.planning.memory import part_parameters

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "mipha_3b"


def test_the_sizes_are_those_of_phi_2_and_siglip() -> None:
    recipe = load_recipe(EXAMPLE / "dense.yaml", check_files=False)
    assert part_parameters(recipe, 0)["language"] == 2_779_683_840
    vision, language = recipe.architecture.vision, recipe.architecture.language
    assert (vision.used_layers, recipe.architecture.visual_tokens) == (26, 729)
    assert (language.head_size, language.rotary_size) == (80, 32)


def test_the_training_is_the_published_one() -> None:
    recipe = load_recipe(EXAMPLE / "dense.yaml", check_files=False)
    align, tune = recipe.stages
    assert (align.trains, tune.trains) == (("projector",), ("projector", "language", "vision"))
    assert align.learning_rate.rates == {"projector": 1e-3}
    assert tune.learning_rate.rates == {"projector": 2e-5, "language": 2e-5, "vision": 2e-5}
    assert [(stage.batch.global_size, stage.epochs) for stage in recipe.stages] == [(256, 1), (128, 2)]
    assert (recipe.optimizer.beta2, recipe.optimizer.epsilon, recipe.optimizer.weight_decay) == (0.98, 1e-7, 0.0)
