"""Shows that the compression suite counts the bytes of both ways by hand, and measures times of both."""

from typing import Any

from megatron_sts.config import Recipe
from megatron_sts.train.compression_benchmark import measure_compression
from tests.ranks import run_ranks
from tests.tiny import tiny_recipe


def _measure(recipe: Recipe) -> dict[str, Any]:
    return measure_compression(recipe, "align", 3, repeats=1, say=lambda text: None)


def test_bytes_of_both_ways_by_hand(tmp_path):
    recipe = tiny_recipe(
        tmp_path,
        parallel={"tensor": 2, "sequence_parallel": True},
        align__data={"text_tokens": 2},
        align__compress={"keep_ratio": 0.25},
    )
    one, other = run_ranks(2, _measure, recipe)
    assert one == other
    # Two pictures, one a rank, 4 of 16 tokens kept, width 16 in fp32; chunks of 3 positions of 6 hold slots 0 to 2 of
    # each picture on the first rank: that sends 1 token and receives 3.
    assert one["bytes_by_collective"] == {
        "ours": {"all_to_all_single": 4 * 16 * 4},
        "plain": {"all_gather_into_tensor": 2 * 16 * 16 * 4},
    }
    assert one["bytes_over_least"] == 1.0 and one["visual_bytes_ratio"] == 0.125
    assert one["projector_time_ratio"] > 0 and one["step_time_ratio"] > 0
