"""Shows which machines may train in FP8, that libraries are known by what is used of them, and FP8's settings."""

import sys
from types import ModuleType

import pytest
import torch

from megatron_sts.config import Recipe
from megatron_sts.errors import ConfigError
from megatron_sts.model import precision
from megatron_sts.model.precision import Machine, check_machine, fp8_settings, offers, parameter_dtype, why_not_offered
from megatron_sts.train.stages import train
from tests.tiny import tiny_recipe

HOPPER = Machine(None, (9, 0), (13, 0))
NOT_INSTALLED = "transformer_engine is not installed"


def recipe(**fields) -> Recipe:
    return Recipe.model_construct(**fields)


@pytest.mark.parametrize("fp8_recipe", ["tensorwise", "delayed", "blockwise"])
def test_hopper_with_transformer_engine_takes_every_recipe(fp8_recipe):
    check_machine(recipe(precision="fp8", fp8_recipe=fp8_recipe), HOPPER)


@pytest.mark.parametrize(
    ("machine", "fp8_recipe", "message"),
    [
        (Machine(NOT_INSTALLED, None, None), "tensorwise", "no CUDA device"),
        (Machine(None, (8, 0), (13, 0)), "tensorwise", "this device has compute capability 8.0"),
        (Machine(NOT_INSTALLED, (9, 0), (13, 0)), "tensorwise", "but transformer_engine is not installed; install"),
        (Machine(None, (8, 9), (13, 0)), "blockwise", "needs compute capability 9.0"),
        (Machine(None, (9, 0), (12, 8)), "blockwise", "torch has CUDA 12.8"),
    ],
)
def test_other_machines_are_refused_with_the_reason(machine, fp8_recipe, message):
    with pytest.raises(ConfigError, match=message):
        check_machine(recipe(precision="fp8", fp8_recipe=fp8_recipe), machine)
    check_machine(recipe(precision="bf16", fp8_recipe=fp8_recipe), machine)


def test_norms_are_recomputed_on_a_gpu_by_transformer_engine_alone():
    wanted = recipe(precision="bf16", recompute=("layernorm", "mlp"))
    for machine in (HOPPER, Machine("there is no GPU", None, None)):
        check_machine(wanted, machine)
    with pytest.raises(ConfigError, match=r"recompute has 'layernorm', .* transformer_engine is not installed"):
        check_machine(wanted, Machine(NOT_INSTALLED, (9, 0), (13, 0)))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine may do it")
def test_training_is_refused_before_any_work(tmp_path):
    with pytest.raises(ConfigError, match="no CUDA device"):
        train(tiny_recipe(tmp_path, precision="fp8"))
    assert not (tmp_path / "run").exists()


def test_a_package_of_the_same_name_is_not_taken_for_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "fused_weight_gradient_mlp_cuda", ModuleType("fused_weight_gradient_mlp_cuda"))
    monkeypatch.setattr(precision, "has_gpu", lambda: True)
    assert not precision.fuses_gradient_accumulation()
    sys.modules["fused_weight_gradient_mlp_cuda"].wgrad_gemm_accum_fp32 = print
    assert precision.fuses_gradient_accumulation()


def test_a_library_that_cannot_be_loaded_is_not_there(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(tmp_path)
    for number, error in enumerate(
        ("OSError('undefined symbol')", "AssertionError('versions differ')", "TypeError('x')")
    ):
        (tmp_path / f"broken_extension{number}.py").write_text(f"raise {error}")
        problem = why_not_offered(f"broken_extension{number}", "anything")
        kind, _, text = error.removesuffix("')").partition("('")
        assert problem == f"broken_extension{number} cannot be imported: {kind}: {text}"
    assert why_not_offered("no_such_module", "anything") == "no_such_module is not installed"
    assert why_not_offered("json", "anything") == "json has no anything"
    assert offers("json", "loads")


def test_transformer_engine_is_not_used_in_fp32(monkeypatch):
    monkeypatch.setattr(precision, "has_transformer_engine", lambda: True)
    assert precision.uses_transformer_engine(torch.bfloat16) and not precision.uses_transformer_engine(torch.float32)


def test_settings_of_fp8():
    tensorwise = fp8_settings(recipe(precision="fp8", fp8_recipe="tensorwise", fp8_bf16_layers=2))
    assert (tensorwise["fp8"], tensorwise["first_last_layers_bf16"]) == ("hybrid", True)
    assert (tensorwise["num_layers_at_start_in_bf16"], tensorwise["num_layers_at_end_in_bf16"]) == (2, 2)
    blockwise = fp8_settings(recipe(precision="fp8", fp8_recipe="blockwise", fp8_bf16_layers=0))
    assert (blockwise["fp8"], blockwise["fp8_recipe"], blockwise["first_last_layers_bf16"]) == (
        "e4m3",
        "blockwise",
        False,
    )
    assert fp8_settings(recipe(precision="bf16", fp8_recipe="tensorwise", fp8_bf16_layers=0)) == {}


def test_weights_are_bf16_under_fp8():
    assert [parameter_dtype(recipe(precision=name)) for name in ("fp32", "bf16", "fp8")] == [
        torch.float32,
        torch.bfloat16,
        torch.bfloat16,
    ]
