"""Shows that the figures of the GPU benchmark are worked out right, from times that are made up."""

import pytest

from tests.gpu.benchmark import report
from tests.gpu.figures import Row, combined, determination, missed, rows_of, table, to_profile, two_stages
from tests.gpu.kernels import Kernel, products, times_text


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
    assert combined(rows, "STS, FP8: 144 tokens, alpha 0.5") == pytest.approx(1_223_426 / 472_181)
    assert combined(rows, "STS, FP8: 36 tokens, alpha 1") is None


def test_goals_are_judged_where_they_were_measured_and_say_what_to_profile():
    assert missed([]) == []
    rows = [
        # 50% and 40% of 989 TFLOP/s.
        Row("align", "dense", "bf16", 1.0, 10, 494.5e12, 2.0**30, None),
        Row("tune", "dense", "bf16", 1.0, 10, 395.6e12, 2.0**30, None),
        Row("tune", "dense", "fp8", 0.85, 10, 395.6e12, 2.0**30, None),
        Row("tune", "alpha 0.5", "bf16", 0.8, 10, 300e12, 2.0**30, 0.89),
        Row("tune", "alpha 1.0", "bf16", 0.7, 10, 300e12, 2.0**30, 0.91),
    ]
    assert [goal.name for goal in missed(rows)] == [
        "tune: dense bf16, share of 989 TFLOP/s",
        "tune: FP8 over bf16, dense",
        "retained saving of skipping, alpha 0.5",
    ]
    assert to_profile(rows) == [("tune", "dense", "bf16"), ("tune", "dense", "fp8"), ("tune", "alpha 0.5", "bf16")]
    assert "| tune: FP8 over bf16, dense | 1.25 | 1.176 | missed |" in table(rows, 1e15)
    assert "| align: dense bf16, share of 989 TFLOP/s | 0.45 | 0.500 |  |" in table(rows, 1e15)


def test_a_straight_line_has_a_determination_of_one():
    assert determination([0, 1, 2, 3], [4, 3, 2, 1]) == pytest.approx(1)
    # Sums of squares 5 and 2.75 about the means, of products 2.5.
    assert determination([0, 1, 2, 3], [0, 2, 1, 2]) == pytest.approx(2.5**2 / (5 * 2.75))


def result(stage: str, seconds: dict[str, float], skipped: dict[str, float] | None = None):
    runs = {
        name: {
            "flops": 1e15,
            "peak_memory_bytes": 2**30,
            "retained_saving": None if name == "dense" else 0.9,
            "layers_skipped": (skipped or {}).get(name, 0.0),
            "step_time_s": time,
        }
        for name, time in seconds.items()
    }
    return {"stage": stage, "samples": 32, "runs": runs, "runs_on": "H", "layers": 16}


def test_a_result_gives_a_row_for_each_setting():
    dense, sparse = rows_of(result("tune", {"dense": 2.0, "alpha 0.5": 1.0}), "bf16")
    assert (dense.setting, dense.retained, dense.samples_per_second) == ("dense", None, 16)
    assert (sparse.setting, sparse.retained, sparse.samples_per_second) == ("alpha 0.5", 0.9, 32)


def test_the_report_has_the_stages_and_the_line_through_the_skipped_layers():
    line = {"dense": 2.0, "constant 0.25": 1.75, "constant 0.5": 1.5}
    skipped = {"constant 0.25": 2.0, "constant 0.5": 4.0}
    measured = {
        "tune|bf16": result("tune", {"dense": 2.0, "alpha 0.5": 1.0}),
        "linear|bf16": result("tune", line, skipped),
    }
    text = report({"measured": measured, "ceiling": 788e12})
    assert text.count("| dense |") == 1 and "constant" not in text
    assert "R² = 1.0000" in text and "788 TFLOP/s" in text and text.endswith("H; 16 layers")


def test_kernels_are_known_by_their_kind():
    names = {
        "nvjet_hsh_128x256_64x4_1x2_h_bz_coopA_NNT": "matrix product",
        "void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm_relu_bf16>": "matrix product",
        "cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16": "attention",
        "void cublasLt::splitKreduce_kernel<32, 16>": "sums within a product",
        "ncclDevKernel_AllReduce_Sum_f32_RING_LL": "communication",
        "void transformer_engine::normalization::rmsnorm_fwd_tuned_kernel": "norm",
        "multi_tensor_apply_kernel<AdamFunctor>": "optimiser",
        "Memcpy HtoD (Pinned -> Device)": "copy",
        "void at::native::vectorized_elementwise_kernel": "other",
    }
    assert {name: Kernel(name, 1, 0.0).kind for name in names} == names
    assert products([Kernel("nvjet_hsh", 3, 0.1), Kernel("splitKreduce_kernel", 5, 0.1), Kernel("x_gemm", 2, 0.1)]) == 5


def test_the_text_of_a_profile_says_what_was_idle():
    text = times_text("title", [Kernel("nvjet", 2, 0.6), Kernel("nccl", 1, 0.2)], 1.0)
    assert "0.6000 s   60.0%  matrix product" in text and "0.2000 s   20.0%  nothing" in text
