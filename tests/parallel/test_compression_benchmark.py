"""Shows that the compression suite counts the bytes of both ways by hand, and measures times of both."""

from typing import Any

from megatron_sts.config import Recipe
from megatron_sts.train.compression_benchmark import measure_compression
from tests.ranks import run_ranks
from tests.tiny import tiny_recipe


def _measure(recipes: list[Recipe]) -> list[dict[str, Any]]:
    return [measure_compression(recipe, "align", 3, repeats=1, say=lambda text: None) for recipe in recipes]


def test_bytes_of_both_ways_by_hand(tmp_path):
    layouts: list[dict[str, Any]] = [{"tensor": 2, "sequence_parallel": True}, {"tensor": 2}, {"context": 2}]
    changes = {"align__data": {"text_tokens": 2}, "align__compress": {"keep_ratio": 0.25}}
    one, other = run_ranks(2, _measure, [tiny_recipe(tmp_path, parallel=layout, **changes) for layout in layouts])
    assert one == other
    # Two pictures, one a rank, 4 of 16 tokens kept, width 16 in fp32, first of 6 positions. Sequence parallelism:
    # chunks of 3 hold slots 0 to 2 of each picture on the first rank, which sends 1 token and receives 3. Without it
    # both ranks hold all. Context parallelism: of 8 positions, padded, the second rank holds the middle four.
    for found, rows in zip(one, (4, 8, 4), strict=True):
        assert found["bytes_by_collective"] == {
            "ours": {"all_to_all_single": rows * 16 * 4},
            "plain": {"all_gather_into_tensor": 2 * 16 * 16 * 4},
        }
        assert found["bytes_over_least"] == 1.0 and found["visual_bytes_ratio"] == rows / 32
        assert found["projector_time_ratio"] > 0 and found["step_time_ratio"] > 0
