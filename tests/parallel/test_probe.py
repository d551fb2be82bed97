"""Shows that a probe finds the same on every layout, finds what was put there, and says it in the documented form.

Tolerance: what the command promises; fp32 sums in another order move a loss of 4 by less than 1e-6.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_sts.config import Recipe, resolved_yaml
from megatron_sts.parallel.groups import start_groups
from megatron_sts.train.loop import prepare_stage
from megatron_sts.train.probe import Probe
from megatron_sts.train.probe_report import plot, record, text
from megatron_sts.train.resume import Start
from megatron_sts.train.saver import Saver
from megatron_sts.train.stage_data import StageData
from tests.ranks import run_ranks, run_until_ended
from tests.tiny import tiny_recipe
from tools.probe import main

LAYOUTS = {
    "dp2": (2, {}),
    "tp2_sp": (2, {"tensor": 2, "sequence_parallel": True}),
    "pp2_vp2": (2, {"pipeline": 2, "virtual_pipeline": 2}),
    "tp2_cp2": (4, {"tensor": 2, "context": 2}),
}
SAMPLES = 7


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("probe")


@pytest.fixture(scope="module")
def weights(root: Path) -> Path:
    """A checkpoint in which layer 2 adds nothing, and layer 1 adds much."""
    run_ranks(1, _save_weights, tiny_recipe(root))
    return root / "run" / "checkpoints" / "align-00000003"


def _save_weights(recipe: Recipe) -> None:
    place, stage = start_groups(recipe.parallel, recipe.seed), recipe.stage("align")
    parts = prepare_stage(recipe, stage, 3, Start(None, 0), place)
    with torch.no_grad():
        for layer, scale in ((1, 30.0), (2, 0.0)):
            block = parts.chunks[0].language.decoder.layers[layer]
            for output in (block.self_attention.linear_proj, block.mlp.linear_fc2):
                output.weight *= scale
        # Queries and keys of zero: each token attends alike to all before it.
        parts.chunks[0].language.decoder.layers[2].self_attention.linear_qkv.weight *= 0.0
    with Saver(recipe, "align", parts.state, print) as saver:
        saver.save(3, is_needed=True)


def _probed(recipe: Recipe, weights: Path) -> tuple[dict[str, Any], str, str, float]:
    place, stage = start_groups(recipe.parallel, recipe.seed), recipe.stage("tune")
    said: list[str] = []
    probe = Probe(recipe, stage, StageData(recipe, stage), weights, place, SAMPLES)
    found = probe.run(0.5, said.append)
    if place.rank == 0:
        plot(found, recipe.output_dir / "chart.png")
    return record(found, 0.25), text(found, 0.25), said[0], _even_attention(probe)


def _even_attention(probe: Probe) -> float:
    """The share of visual tokens among those that a text token behind an image sees, the mean over such tokens."""
    index, visual = probe._samples.index, probe._full.visual_tokens
    shares = []
    for ranges, images in zip(index.text_ranges(visual), index.images.tolist(), strict=True):
        is_text = {position for start, end in ranges for position in range(start, end)}
        for position in is_text if images else ():
            before = sum(earlier not in is_text for earlier in range(position))
            shares += [before / (position + 1)] if before else []
    return sum(shares) / len(shares)


@pytest.fixture(scope="module")
def alone(root: Path, weights: Path) -> tuple[dict[str, Any], str, str, float]:
    return run_ranks(1, _probed, tiny_recipe(root), weights)[0]


def test_it_finds_what_was_put_there(root, alone):
    found, told, said, even_attention = alone
    layers = found["layers"]
    assert [layer["layer"] for layer in layers] == [0, 1, 2, 3]
    # The layer that adds nothing is worth nothing, to the last digit; the one that adds much turns most.
    assert (layers[2]["loss_rise"], layers[2]["loss_rise_visual"]) == (0.0, 0.0)
    assert layers[2]["block_influence"] == pytest.approx(0.0, abs=1e-6)
    assert max(layers, key=lambda layer: layer["block_influence"])["layer"] == 1
    assert layers[2]["attention_to_visual"] == pytest.approx(even_attention, rel=1e-5)
    assert all(0 < layer["attention_to_visual"] < 1 for layer in layers)
    assert len({layer["attention_to_visual"] for layer in layers}) == 4
    assert abs(layers[1]["loss_rise"]) > 1e-3 < abs(layers[1]["loss_rise_visual"])
    assert set(layers[0]) >= {"layer", "loss_rise", "loss_rise_visual", "standard_error", "block_influence"}
    for plan in found["plans"]:
        assert set(plan) >= {"by", "tokens", "alpha", "keep_ratio", "loss_rise", "flops_saved"}
        assert 0 < plan["flops_saved"] < 1
    kinds = {(plan["tokens"], plan["by"]) for plan in found["plans"]}
    assert kinds >= {("all", "depth"), ("visual", "redundancy"), (None, None)}
    assert max(map(len, told.splitlines())) <= 100
    assert f"of {SAMPLES} samples" in said and "FLOPs" in said
    assert (root / "run" / "chart.png").stat().st_size > 10_000
    best = found["recommended"]
    assert best["loss_rise"] <= 0.25
    # What is recommended saves most of what has not lowered the loss, as far as noise can tell.
    assert best["loss_rise"] >= -2 * best["standard_error"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_it_finds_the_same_on_every_layout(root, weights, alone, layout):
    ranks, parallel = LAYOUTS[layout]
    for found, *_ in run_ranks(ranks, _probed, tiny_recipe(root, parallel=parallel), weights):
        for kind in ("layers", "plans"):
            for one, other in zip(found[kind], alone[0][kind], strict=True):
                assert one == pytest.approx(other, abs=1e-5)
        for key in ("loss", "image_worth", "supervised_tokens"):
            assert found[key] == pytest.approx(alone[0][key], abs=1e-5)


def _command(recipe: str, *arguments: str) -> int:
    code: int = main(["--config", recipe, *arguments])
    return code


def test_the_command_prints_one_json_object_that_a_recipe_can_name(root, weights, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(resolved_yaml(tiny_recipe(root)))
    (ended,) = run_until_ended(1, _command, str(recipe), "--stage", "align", "--samples", "3", "--json")
    assert ended.code == 0, ended.output
    assert "fresh weights" in ended.output
    found = json.loads(ended.output[ended.output.index("{") : ended.output.rindex("}") + 1])
    assert found["stage"] == "align" and found["samples"] == 3
    (refused,) = run_until_ended(1, _command, str(recipe), "--stage", "no")
    assert refused.code == 2 and "no stage 'no'" in refused.output
