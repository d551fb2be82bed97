"""Shows that the projector computes what transformers' LLaVA projector does, and marks its gradients for summing."""

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from megatron_sts.model.projector import Projector
from megatron_sts.parallel.device import prepare_device
from tests.ranks import run_ranks


def _compare() -> None:
    prepare_device()
    torch.manual_seed(0)
    reference = LlavaMultiModalProjector(
        LlavaConfig(vision_config=CLIPVisionConfig(hidden_size=12), text_config=LlamaConfig(hidden_size=32))
    )
    projector = Projector(12, 32, torch.float32, sequence_parallel=False)
    projector.load_state_dict(reference.state_dict(), strict=True)
    features = torch.randn(7, 12)
    assert torch.equal(projector(features), reference(features))


def test_projector_is_that_of_llava():
    run_ranks(1, _compare)


def _marks(sequence_parallel: bool) -> list[bool]:
    prepare_device()
    projector = Projector(4, 8, torch.float32, sequence_parallel)
    return [parameter.sequence_parallel for parameter in projector.parameters()]


def test_parameters_carry_the_mark_of_sequence_parallelism():
    assert run_ranks(1, _marks, True) == [[True] * 4]
    assert run_ranks(1, _marks, False) == [[False] * 4]
