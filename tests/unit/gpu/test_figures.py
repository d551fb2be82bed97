"""Shows that the figures of the GPU benchmark are worked out right, from times that are made up."""

import pytest

from tests.gpu.figures import GOALS, Row, combined, determination, rows_of, table, two_stages
from tests.gpu.kernels import Kernel, products, times_text


def row(stage: str, setting: str, precision: str, seconds: float, samples: int = 10) -> Row:
    return Row(stage, setting, precision, seconds, samples, 98.9e12 * seconds, 2.0**30, 0.0, 1)


def step(stage: str, setting: str, precision: str, seconds: float, flops: float = 1e15, skipped: int = 0):
    return {
        "part": "speed",
        "name": "step",
        "stage": stage,
        "setting": setting,
        "precision": precision,
        "seconds": seconds,
        "flops": flops,
        "memory": 2**30,
        "samples": 32,
        "layers_skipped": skipped,
    }


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
    assert combined(rows, "STS, FP8: 36 tokens, then alpha 1 and 144 tokens") is None


def test_a_row_takes_the_median_of_steps_that_ran_as_many_layers_and_the_mean_over_all():
    records = [step("tune", "dense", "bf16", seconds) for seconds in (2.0, 9.0, 2.0)]
    records += [step("tune", "alpha 0.5", "bf16", seconds, 8e14, skipped=4) for seconds in (1.0, 1.2, 1.6)]
    records += [step("tune", "alpha 0.5", "bf16", seconds, 6e14, skipped=8) for seconds in (0.8, 0.8, 5.0)]
    # Warm-ups and other parts do not count.
    records += [records[0] | {"name": "warm-up", "seconds": 100.0}, records[0] | {"part": "linear", "seconds": 100.0}]
    dense, sparse = rows_of(records)
    assert (dense.step_time_s, dense.retained, dense.steps) == (2.0, None, 3)
    # The mean of 1.2 and 0.8; half of the time is saved, and three tenths of the FLOPs.
    assert (sparse.step_time_s, sparse.layers_skipped, sparse.steps) == (1.0, 6.0, 6)
    assert sparse.retained == pytest.approx(0.5 / 0.3)
    assert sparse.samples_per_second == 32


def test_goals_are_judged_where_they_were_measured():
    # 50% and 40% of 989 TFLOP/s; FP8 1.2 and sparsity 2.6 times as fast.
    records = [
        step("align", "dense", "bf16", 1.0, 494.5e12),
        step("align", "144 tokens", "bf16", 1 / 2.6, 200e12),
        step("tune", "dense", "bf16", 1.0, 395.6e12),
        step("tune", "dense", "fp8", 1 / 1.2, 395.6e12),
    ]
    text = table(rows_of(records), 1e15)
    assert "| align: dense bf16, share of 989 TFLOP/s | 0.45 | 0.500 |  |" in text
    assert "| tune: dense bf16, share of 989 TFLOP/s | 0.45 | 0.400 | missed |" in text
    assert "| align: 144 of 576 tokens over dense, bf16 | 2.5 | 2.600 |  |" in text
    # 0.615 of the time over 0.596 of the FLOPs.
    assert "| align: retained saving, 144 tokens, bf16 | 0.95 | 1.033 |  |" in text
    assert "| tune: FP8 over bf16, dense | 1.25 | 1.200 | missed |" in text
    assert "| align: FP8 over bf16, dense | 1.25 |  | not run |" in text
    assert table([], None).count("not run") == len(GOALS)


def test_a_straight_line_has_a_determination_of_one():
    assert determination([0, 1, 2, 3], [4, 3, 2, 1]) == pytest.approx(1)
    # Sums of squares 5 and 2.75 about the means, of products 2.5.
    assert determination([0, 1, 2, 3], [0, 2, 1, 2]) == pytest.approx(2.5**2 / (5 * 2.75))


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
