"""Shows on a GPU that FP8 trains as bf16 does."""

import pytest

from tests.gpu.conditions import PRECISIONS, on_gpu
from tests.gpu.recipes import recipe_of, train
from tests.tiny import tiny_data, tiny_tokenizer

pytestmark = on_gpu
STEPS = 300


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("losses")
    # As many as the steps see: of fewer, learnt by heart, the loss goes to zero and has no 2 %.
    tiny_data(root, records=8 * STEPS)
    tiny_tokenizer(root / "tokenizer")
    return root


@pytest.fixture(scope="module")
def losses_of_bf16(root):
    return train(recipe_of(root, "bf16", STEPS))


def means(values: list[float], width: int = 50) -> list[float]:
    return [sum(values[start : start + width]) / width for start in range(0, len(values), width)]


@pytest.mark.parametrize("changes", PRECISIONS[1:])
def test_fp8_trains_as_bf16_over_300_steps(root, losses_of_bf16, changes):
    fp8 = train(recipe_of(root, changes.get("fp8_recipe", "tensorwise"), STEPS, **changes))
    assert means(fp8)[-1] < 0.9 * means(fp8)[0]
    # Single steps of a tiny batch are noisy; what counts is the course of the loss.
    assert means(fp8) == pytest.approx(means(losses_of_bf16), rel=0.02)
