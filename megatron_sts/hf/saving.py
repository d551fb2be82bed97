"""What a run's sparsity saved, added up from its metrics.jsonl."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from megatron_sts.config import METRICS_FILE, Run

# Contract: megatron_sts.train.progress writes this file, with the fields of megatron_sts.train.figures.StepFigures.
_SUMMED = ("flops_executed", "flops_dense", "visual_tokens_kept", "visual_tokens_total", "step_time_s")
_FIELDS = {"stage", "step", "layers_skipped", "dropped_step", *_SUMMED}


@dataclass(frozen=True, slots=True)
class StageSaving:
    """The sums over the recorded steps of one stage.

    expected_steps: steps that the checkpoint has done in this stage, as far as is known. flops_dense: of the same
    samples with every layer and every visual token. visual_tokens_dropped, layer_runs_skipped,
    layer_runs_skipped_for_visual: shares of all.
    seconds: of the steps alone. dropped_steps: steps that updated nothing.
    """

    stage: str
    steps: int
    expected_steps: int
    flops_executed: float
    flops_dense: float
    visual_tokens_dropped: float
    layer_runs_skipped: float
    layer_runs_skipped_for_visual: float
    seconds: float
    dropped_steps: int


def measured_savings(run: Run) -> list[StageSaving]:
    """What metrics.jsonl in the run's output_dir records, up to the run's checkpoint, stage by stage.

    Empty where the file is not there, and without the lines that cannot be read.
    """
    lines, savings = _lines(run), []
    for stage in run.recipe.stages:
        ends = run.step if stage.name == run.stage else stage.steps
        steps = [line for line in lines if line["stage"] == stage.name and (ends is None or line["step"] <= ends)]
        if steps:
            savings.append(_sum(steps, ends or steps[-1]["step"], run))
        if stage.name == run.stage:
            break
    return savings


def _lines(run: Run) -> list[dict[str, Any]]:
    try:
        text = (run.recipe.output_dir / METRICS_FILE).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return []
    lines = []
    for line in text.split("\n"):
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and record.keys() >= _FIELDS:
            lines.append(record)
    return lines


def _sum(steps: Sequence[dict[str, Any]], expected: int, run: Run) -> StageSaving:
    executed, dense, kept, tokens, seconds = (sum(line[key] for line in steps) for key in _SUMMED)
    layer_runs = run.recipe.architecture.language.layers * len(steps)
    # Runs of earlier versions skipped layers for all tokens alone.
    skipped, for_visual = (
        sum(len(line.get(key, ())) for line in steps) for key in ("layers_skipped", "layers_skipped_for_visual")
    )
    return StageSaving(
        stage=steps[0]["stage"],
        steps=len(steps),
        expected_steps=expected,
        flops_executed=executed,
        flops_dense=dense,
        visual_tokens_dropped=1 - kept / tokens if tokens else 0.0,
        layer_runs_skipped=skipped / layer_runs,
        layer_runs_skipped_for_visual=for_visual / layer_runs,
        seconds=seconds,
        dropped_steps=sum(line["dropped_step"] for line in steps),
    )
