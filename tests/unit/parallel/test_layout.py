"""Shows which layers each virtual pipeline stage holds, worked out by hand."""

import pytest
from megatron.core.transformer.enums import LayerType

from megatron_sts.config import ParallelConfig
from megatron_sts.parallel.layout import pipeline_layout


@pytest.mark.parametrize(
    ("parallel", "stages"),
    [
        ({}, [(0, 8)]),
        ({"tensor": 2}, [(0, 8)]),
        ({"pipeline": 2}, [(0, 4), (4, 8)]),
        ({"pipeline": 2, "virtual_pipeline": 2}, [(0, 2), (2, 4), (4, 6), (6, 8)]),
        ({"pipeline": 2, "layers_per_stage": (3, 5)}, [(0, 3), (3, 8)]),
        ({"pipeline": 2, "virtual_pipeline": 2, "layers_per_stage": (1, 3, 3, 1)}, [(0, 1), (1, 4), (4, 7), (7, 8)]),
    ],
)
def test_layers_of_stages(parallel, stages):
    assert ParallelConfig.model_validate(parallel).layers_of_stages(8) == [range(*stage) for stage in stages]


def test_an_even_split_is_left_to_megatron_core():
    assert pipeline_layout(8, ParallelConfig(pipeline=2)) is None
    assert pipeline_layout(8, ParallelConfig(pipeline=1, layers_per_stage=(8,))) is None


def test_an_uneven_split_opens_with_the_embedding_and_closes_with_the_loss():
    parallel = ParallelConfig(pipeline=2, layers_per_stage=(1, 2))
    decoder = LayerType.decoder
    assert pipeline_layout(3, parallel) == [[LayerType.embedding, decoder], [decoder, decoder, LayerType.loss]]
