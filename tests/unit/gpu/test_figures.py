"""Shows that the figures of the GPU benchmark are worked out right, from times that are made up."""

import pytest

from tests.gpu.benchmark import report
from tests.gpu.figures import Row, combined, determination, rows_of, table, two_stages


def row(stage: str, setting: str, precision: str, seconds: float, samples: int = 10) -> Row:
    return Row(stage, setting, precision, seconds, samples, 98.9e12 * seconds, 2.0**30, None)


def test_utilisation_is_of_the_peak():
    # 98.9 TFLOP/s: a tenth of 989, a quarter of 395.6.
    assert row("align", "dense", "bf16", 2.0).utilisation(989e12) == pytest.approx(0.1)
    assert "| 10.0% | 25.0% | 1.0 |" in table([row("align", "dense", "bf16", 2.0)], 395.6e12)


def test_two_stages_take_each_its_own_samples():
    # 10 and 20 samples a second.
    seconds = two_stages(row("align", "dense", "bf16", 1.0), row("tune", "dense", "bf16", 0.5))
    assert seconds == pytest.approx(55_812.8 + 33_264.9)


def test_the_combined_factor_is_against_dense_bf16_and_left_out_where_a_part_is_missing():
    rows = [row(stage, "dense", "bf16", 1.0) for stage in ("align", "tune")]
    rows += [row("align", "144 tokens", "fp8", 0.25), row("tune", "alpha 0.5", "fp8", 0.5)]
    # (558128 + 665298) / (558128 / 4 + 665298 / 2)
    assert combined(rows) == [("STS, FP8: 144 tokens, alpha 0.5", pytest.approx(1_223_426 / 472_181))]


def test_a_straight_line_has_a_determination_of_one():
    assert determination([0, 1, 2, 3], [4, 3, 2, 1]) == pytest.approx(1)
    # Sums of squares 5 and 2.75 about the means, of products 2.5.
    assert determination([0, 1, 2, 3], [0, 2, 1, 2]) == pytest.approx(2.5**2 / (5 * 2.75))


def result(stage: str, dense: float, sts: float, skipped: float = 0.0):
    run = {"flops": 1e15, "peak_memory_bytes": 2**30, "retained_saving": 0.9, "layers_skipped": skipped}
    return {
        "stage": stage,
        "samples": 32,
        "runs": {"dense": run | {"step_time_s": dense}, "sts": run | {"step_time_s": sts}},
    }


def test_a_result_gives_a_dense_and_a_sparse_row():
    dense, sparse = rows_of(result("tune", 2.0, 1.0), "alpha 0.5", "bf16")
    assert (dense.setting, dense.retained, dense.samples_per_second) == ("dense", None, 16)
    assert (sparse.setting, sparse.retained, sparse.samples_per_second) == ("alpha 0.5", 0.9, 32)


def test_the_report_has_dense_once_and_the_line_through_the_skipped_layers():
    measured = {"alpha 0.5|bf16": result("tune", 2.0, 1.0), "alpha 1.0|bf16": result("tune", 2.1, 0.5)}
    measured |= {f"constant {n}|bf16": result("tune", 2.0, 2.0 - n, 8.0 * n) for n in (0.0, 0.25, 0.5)}
    text = report({"measured": measured, "ceiling": 788e12})
    assert text.count("| dense |") == 1 and "R² = 1.0000" in text and "788 TFLOP/s" in text
