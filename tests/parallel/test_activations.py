"""Shows that planned activations are what torch is given to save for the backward pass, in every setting of recompute.

fp32 and plain layers; Transformer Engine's are looked at in test_transformer_engine.py. A layer keeps what is planned
and the rotary tables, to the byte; where text alone goes through its MLP, indices too (8 bytes a row). A whole rank
within 4%: planning leaves out the embeddings and, of the loss, all but its softmax, which here, at 64 rows, weigh more
than at real sizes.
"""

import copy

import pytest

from tests.parallel.kept_activations import kept_activations
from tests.ranks import run_ranks
from tests.tiny import ARCHITECTURE, tiny_recipe

SIZES = copy.deepcopy(ARCHITECTURE)
SIZES["language"] |= {"hidden_size": 64, "ffn_hidden_size": 160}
QWEN3 = copy.deepcopy(SIZES)
QWEN3["language"] |= {"family": "qwen3", "attention_head_size": 16}
PHI = copy.deepcopy(SIZES)
PHI["language"] |= {"family": "phi", "query_groups": 4, "partial_rotary_factor": 0.5}
SEQUENCE = {"tensor": 2, "sequence_parallel": True}


def test_a_layer_and_a_rank_keep_what_is_planned(tmp_path):
    cases = [
        (stage, tiny_recipe(tmp_path, model__architecture=sizes, parallel=parallel, recompute=recompute), for_text)
        for stage, sizes, parallel, recompute, for_text in (
            ("tune", SIZES, {"tensor": 2}, "none", False),
            ("align", SIZES, {"tensor": 2}, ["mlp"], False),
            ("tune", SIZES, SEQUENCE, ["layernorm", "mlp"], False),
            ("tune", SIZES, SEQUENCE, ["mlp"], False),
            ("align", SIZES, SEQUENCE, ["layernorm"], False),
            ("tune", QWEN3, SEQUENCE, "none", False),
            ("tune", SIZES, {"tensor": 2}, "none", True),
            ("tune", PHI, SEQUENCE, "none", False),
            ("tune", PHI, SEQUENCE, ["layernorm", "mlp"], True),
            ("align", PHI, {"tensor": 2}, "none", False),
            ("tune", SIZES, {"tensor": 2}, "full", False),
        )
    ]
    for (stage, recipe, for_text), kept in zip(cases, run_ranks(2, kept_activations, cases)[0], strict=True):
        case, full = f"{stage} {recipe.recompute} {recipe.parallel}", recipe.recompute == "full"
        rotary = 0 if full else kept.rotary
        if not full:
            assert kept.layer == pytest.approx(kept.planned_layer + rotary, rel=0.01 if for_text else 1e-9), case
        if not for_text:
            layers = recipe.architecture.language.layers
            assert kept.model == pytest.approx(kept.planned_model + layers * rotary, rel=0.04), case
