"""What moving and projecting only kept visual tokens saves, against the plain way, in one run on the same pictures.

The plain way (train/plain_compression.py) gathers all features on every rank, projects all, and selects then. Both
ways share the tower's work out and make the same embeddings, which is checked before anything is timed.
"""

import statistics
import time
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_sts.config import Recipe
from megatron_sts.data import Batch
from megatron_sts.model.merge import visual_rows
from megatron_sts.model.visual_tokens import VisualTokens
from megatron_sts.parallel.device import device_name, synchronize
from megatron_sts.parallel.exchange import own_share
from megatron_sts.parallel.groups import start_groups
from megatron_sts.parallel.together import from_all_ranks
from megatron_sts.parallel.traffic import count_traffic
from megatron_sts.sts import StagePlanner, StepPlan
from megatron_sts.train.benchmark import Say, Stepper
from megatron_sts.train.plain_compression import PlainVisualTokens


def measure_compression(recipe: Recipe, stage_name: str, total_steps: int, repeats: int, say: Say) -> dict[str, object]:
    """The figures of `--suite compression`; every rank returns the same.

    visual_bytes_ratio, projector_time_ratio, step_time_ratio: ours over plain. Bytes are those of the forward pass of
    one micro-batch, summed over the ranks; times are of the slowest rank, medians of `repeats`, a projection with its
    backward pass. bytes_over_least: ours over each kept feature sent once to its owner.
    """
    stage = recipe.stage(stage_name)
    place = start_groups(recipe.parallel, recipe.seed)
    stepper = Stepper(recipe, stage, total_steps, place)
    plan = StagePlanner(recipe, stage, total_steps, total_steps).plan(0)
    model = stepper.parts.chunks[0]
    model.set_plan(plan)
    ours = model.visual
    assert ours is not None
    plain = PlainVisualTokens(ours.vision, ours.projector, ours.language, ours.group, ours.tensor, ours.config)
    batch = next(stepper.batches(plan, stepper.length(plan))).on_device(torch.cuda.current_device())
    expected, held = plain.projected_rows(batch, plan)
    # A rank whose chunk has no visual token projects a row all the same.
    made = ours.projected_rows(batch, plan)[0][: held.image.numel()]
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-2, msg="both ways make the same embeddings")

    ways = {"ours": ours, "plain": plain}
    traffic = {name: _traffic(way, batch, plan) for name, way in ways.items()}
    least = _least_bytes(batch, plan, ours)
    say(f"bytes moved: {traffic}, least {least}")
    features, rows = ours.own_rows(batch, plan)
    everything = plain.gathered(batch, plan).flatten(0, 1)
    chosen = torch.arange(rows.image.numel(), device=everything.device)
    projections: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: ours.projector(features),
        "plain": lambda: ours.projector(everything)[chosen],
    }
    projector: dict[str, list[float]] = {name: [] for name in ways}
    steps: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats + 1):
        for name, way in ways.items():
            model.visual = way
            found = (_slowest(projections[name]), stepper.time(plan)[0])
            if repeat:
                # The first of each warms up.
                projector[name].append(found[0])
                steps[name].append(found[1])
    model.visual = ours
    projector_s = {name: statistics.median(times) for name, times in projector.items()}
    step_s = {name: statistics.median(times) for name, times in steps.items()}
    bytes_moved = {name: sum(found.values()) for name, found in traffic.items()}
    return {
        "stage": stage.name,
        "device": device_name(),
        "layout": recipe.parallel.model_dump() | {"data": place.data_size},
        "strategy": plan.strategy,
        "visual_tokens": {"kept": plan.visual_tokens, "total": plan.total_visual_tokens},
        "visual_bytes_ratio": bytes_moved["ours"] / bytes_moved["plain"],
        "projector_time_ratio": projector_s["ours"] / projector_s["plain"],
        "step_time_ratio": step_s["ours"] / step_s["plain"],
        "bytes_over_least": bytes_moved["ours"] / least,
        "bytes_least": least,
        "bytes_by_collective": traffic,
        "projector_time_s": projector_s,
        "step_time_s": step_s,
        "repeats": repeats,
    }


def _traffic(way: VisualTokens, batch: Batch, plan: StepPlan) -> dict[str, int]:
    """Bytes that all ranks together send in one forward pass, by collective."""
    with count_traffic() as sent, torch.no_grad():
        way.projected_rows(batch, plan)
    by_rank: list[dict[str, int]] = from_all_ranks(dict(sent))
    names = sorted({name for found in by_rank for name in found})
    return {name: sum(found.get(name, 0) for found in by_rank) for name in names}


def _least_bytes(batch: Batch, plan: StepPlan, way: VisualTokens) -> int:
    """Bytes of the kept features that a rank needs, by position, and whose image's tower pass another rank made."""
    size, count, length = way.group.size(), batch.image_rows.size(0), batch.tokens.size(1)
    moved = 0
    for rank in range(size):
        own = own_share(count, rank, size)
        image = visual_rows(batch.image_rows, batch.image_starts, plan.visual_tokens, way.chunk((length,), rank)).image
        moved += int(((image < own.start) | (image >= own.stop)).sum())
    weight = way.projector.linear_1.weight
    return moved * weight.size(1) * weight.element_size()


def _slowest(run: Callable[[], Tensor]) -> float:
    """Seconds of a forward and a backward pass on the slowest rank."""
    synchronize()
    dist.barrier()
    began = time.perf_counter()
    run().sum().backward()
    synchronize()
    seconds = torch.tensor(time.perf_counter() - began, device=torch.cuda.current_device())
    dist.all_reduce(seconds, op=dist.ReduceOp.MAX)
    return float(seconds)
