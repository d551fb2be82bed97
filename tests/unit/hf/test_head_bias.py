"""Shows that a LLaVA model computes with its head's weight alone what Phi computes with weight and bias."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, PhiForCausalLM

from megatron_sts.errors import ConversionError
from megatron_sts.hf import ImportOptions, export_checkpoint, import_pair
from megatron_sts.hf.head_bias import folded_head
from megatron_sts.hf.training_checkpoint import TensorReader
from tests.unit.hf.sources import language_config, nothing
from tests.unit.hf.tiny_llava import make_tokenizer


def test_by_hand():
    # The norm's output is (1 + 2 z, 3 + 4 z') with z + z' = 0, and 1/2 (1 + 2 z) + 1/4 (3 + 4 z') = 1/2 + 3/4.
    found = folded_head(
        torch.tensor([[1.0, 0.0], [0.0, 0.0]]),
        torch.tensor([5.0, 0.0]),
        norm_weight=torch.tensor([2.0, 4.0]),
        norm_bias=torch.tensor([1.0, 3.0]),
    )
    assert found.tolist() == [[1 + 5 * 0.5 / 1.25, 5 * 0.25 / 1.25], [0, 0]]


def test_a_bias_of_zero_leaves_the_very_weight():
    weight = torch.randn(3, 2)
    assert folded_head(weight, torch.zeros(3), torch.zeros(2), torch.zeros(2)) is weight


@pytest.mark.parametrize(("weight", "bias"), [([1.0, 0.0], [1.0, 1.0]), ([2.0, 2.0], [1.0, -1.0])])
def test_a_norm_that_leaves_no_way_is_refused(weight, bias):
    with pytest.raises(ConversionError, match="has a bias, which a LLaVA model of transformers has no place for"):
        folded_head(torch.ones(3, 2), torch.ones(3), torch.tensor(weight), torch.tensor(bias))


def test_phi_imported_and_exported_as_a_llava_model_computes_the_same(sources: Path, tmp_path: Path):
    config, tokenizer = language_config("phi"), make_tokenizer(image_token=False)
    config.vocab_size = len(tokenizer)
    model = PhiForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    model.save_pretrained(tmp_path / "phi")
    tokenizer.save_pretrained(tmp_path / "phi")
    import_pair(sources / "siglip2", tmp_path / "phi", tmp_path / "init", ImportOptions(), nothing)
    bias = TensorReader(tmp_path / "init").read("output_layer.bias")[: len(tokenizer) + 1]
    assert torch.equal(bias[:-1], model.lm_head.bias)
    # `<image>` gets the mean of the others, as its weight does.
    assert bias[-1] == pytest.approx(float(model.lm_head.bias.detach().mean()), rel=1e-5)
    report = export_checkpoint(tmp_path / "init", tmp_path / "llava")
    llava, info = AutoModelForImageTextToText.from_pretrained(tmp_path / "llava", output_loading_info=True)
    assert not any(info.values()), info
    tokens = torch.arange(len(tokenizer))[None]
    with torch.inference_mode():
        found, expected = llava.eval()(input_ids=tokens).logits, model(input_ids=tokens).logits
    torch.testing.assert_close(found[..., : len(tokenizer)], expected, rtol=1e-4, atol=1e-4)
    language = dict(llava.model.language_model.state_dict())
    for name, tensor in model.model.state_dict().items():
        assert torch.equal(language[name][: len(tensor)], tensor), name
    (row,) = (row for row in report.details.rows if row.tensor.endswith("lm_head.weight"))
    assert row.sources == ("output_layer.weight", "output_layer.bias")
