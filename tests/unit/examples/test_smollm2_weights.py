"""Shows that the example's converters give back the models that GGUF and ONNX files were written of."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from transformers import AutoImageProcessor, AutoModel, AutoModelForCausalLM, AutoTokenizer

from tests.unit.examples.pretrained_files import TEXT, write_gguf, write_onnx

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "smollm2"


def example(name: str) -> ModuleType:
    """One of the example's scripts as a module of its own name."""
    specification = importlib.util.spec_from_file_location(f"smollm2_{name}", EXAMPLE / f"{name}.py")
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    # Where its dataclasses look for their annotations.
    sys.modules[specification.name] = module
    specification.loader.exec_module(module)
    return module


def test_a_gguf_file_becomes_the_language_model_with_its_tokenizer(tmp_path: Path) -> None:
    expected = write_gguf(tmp_path / "tiny.gguf")
    count = example("convert_language").convert(tmp_path / "tiny.gguf", tmp_path / "language")
    assert count == sum(parameter.numel() for parameter in expected.parameters())
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "language")
    for name, tensor in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "language")
    tokens = tokenizer(TEXT[0], return_tensors="pt").input_ids
    assert tokenizer.decode(tokens[0]) == TEXT[0]
    # Not only the weights: rotary base, heads and epsilon too.
    with torch.inference_mode():
        torch.testing.assert_close(model(tokens).logits, expected(tokens).logits, rtol=0, atol=1e-6)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "yes"}], add_generation_prompt=True, tokenize=False
    )
    assert prompt == "<|im_start|>user\nyes<|im_end|>\n<|im_start|>assistant\n"


def test_the_backbone_of_an_onnx_file_becomes_the_tower(tmp_path: Path) -> None:
    expected = write_onnx(tmp_path / "tiny.onnx", tmp_path / "scratch")
    example("convert_tower").convert(tmp_path / "tiny.onnx", tmp_path / "tower")
    model, info = AutoModel.from_pretrained(tmp_path / "tower", output_loading_info=True)
    assert not any(info.values()), info
    for name, tensor in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    pixels = torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(model.eval()(pixels).last_hidden_state, expected(pixels).last_hidden_state)
    assert model.config.image_size == 42
    processor = AutoImageProcessor.from_pretrained(tmp_path / "tower", backend="pil")
    assert (processor.size["shortest_edge"], processor.crop_size["height"]) == (256, 224)


def test_an_onnx_file_of_another_kind_is_refused() -> None:
    tower = example("convert_tower")
    stored = {"backbone.embeddings.cls_token": np.zeros((1, 1, 4)), "backbone.layer.bias": np.zeros(4)}
    with pytest.raises(ValueError, match="position embeddings: found constants of shapes"):
        tower.tower_tensors(stored, [])
    positions = {"onnx::Concat_1": np.zeros((1, 1, 4)), "onnx::Reshape_2": np.zeros((1, 9, 4))}
    with pytest.raises(ValueError, match=r"no matrix was found for layer\.bias"):
        tower.tower_tensors(stored | positions, [])
