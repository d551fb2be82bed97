"""Steps whose loss or gradient is not to be trusted: what is found, what is written down, when to give up."""

import json
import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megatron_sts.config import METRICS_FILE, LossSpikeConfig, Recipe
from megatron_sts.errors import TrainingError
from megatron_sts.parallel.groups import Place
from megatron_sts.parallel.together import from_all_ranks, rank_zero_does

BAD_STEPS_FILE = "bad_steps.jsonl"
"""In a run's output_dir: one line for each step that was dropped or warned of."""
_SHOWN_NAMES = 5


@dataclass(frozen=True)
class Judgement:
    """What is wrong with a step, with its loss and gradient norm, the same on all ranks; `dropped` False: a warning."""

    problem: str
    dropped: bool

    @property
    def text(self) -> str:
        """For the terminal."""
        return f"{'DROPPED' if self.dropped else 'warning'}: {self.problem}"


class SpikeGuard:
    """Loss and gradient norm against those of the last `window` good steps: above mean + sigma deviations is a spike.

    It says nothing before the window is full. Its state is these figures; a resumed run reads them from
    metrics.jsonl.
    """

    def __init__(self, settings: LossSpikeConfig, history: Iterable[tuple[float, float]] = ()):
        self._settings = settings
        self._history: deque[tuple[float, float]] = deque(history, maxlen=settings.window)

    @property
    def drops(self) -> bool:
        """Whether a step with a spike is dropped."""
        return self._settings.action == "drop"

    def problem(self, loss: float, grad_norm: float) -> str | None:
        """What is a spike in this step, None where nothing is."""
        if len(self._history) < self._settings.window:
            return None
        found = (("loss", loss, f"gradient norm {grad_norm:.6g}"), ("gradient norm", grad_norm, f"loss {loss:.6g}"))
        for (name, value, other), earlier in zip(found, zip(*self._history, strict=True), strict=True):
            mean = math.fsum(earlier) / len(earlier)
            deviation = math.sqrt(math.fsum((one - mean) ** 2 for one in earlier) / len(earlier))
            if value > mean + self._settings.sigma * deviation:
                return (
                    f"{name} {value:.6g} is a spike: more than {self._settings.sigma:g} deviations ({deviation:.3g}) "
                    f"above {mean:.6g}, the mean of the last {len(earlier)} good steps ({other})"
                )
        return None

    def take_in(self, loss: float, grad_norm: float) -> None:
        """Remember a good step."""
        self._history.append((loss, grad_norm))


class StepJudge:
    """Says before the update whether a step is dropped. Every rank has one, with the same figures."""

    def __init__(self, guard: SpikeGuard | None = None):
        self._guard = guard

    def judge(self, loss: float, grad_norm: float) -> Judgement | None:
        """None: a good step, which is remembered. loss, grad_norm: of the global batch, the same on all ranks."""
        if not math.isfinite(loss):
            return Judgement(f"loss {loss:.6g} is not finite (gradient norm {grad_norm:.6g})", dropped=True)
        if not math.isfinite(grad_norm):
            return Judgement(f"gradient norm {grad_norm:.6g} is not finite (loss {loss:.6g})", dropped=True)
        if self._guard is None:
            return None
        problem = self._guard.problem(loss, grad_norm)
        if problem is None:
            self._guard.take_in(loss, grad_norm)
            return None
        return Judgement(problem, dropped=self._guard.drops)


def step_judge(recipe: Recipe, stage: str, first_step: int) -> StepJudge:
    """The judge of a stage that goes on after `first_step` steps; called on all ranks together."""
    settings = recipe.loss_spike
    if settings is None:
        return StepJudge()
    found: list[Any] = [None]
    if dist.get_rank() == 0:
        found = [_good_steps(recipe.output_dir / METRICS_FILE, stage, first_step, settings.window)]
    # Not every node need see the output directory.
    dist.broadcast_object_list(found, src=0)
    return StepJudge(SpikeGuard(settings, found[0]))


def _good_steps(metrics: Path, stage: str, first_step: int, window: int) -> list[tuple[float, float]]:
    """(loss, gradient norm) of the newest good steps up to `first_step`, each as its last line has it."""
    steps: dict[int, tuple[float, float]] = {}
    with_spike = _steps_in(metrics.with_name(BAD_STEPS_FILE), stage)
    for record in _records(metrics):
        if record["stage"] == stage and record["step"] <= first_step and not record["dropped_step"]:
            steps[record["step"]] = (record["loss"], record["grad_norm"])
    good = [steps[step] for step in sorted(steps) if step not in with_spike]
    return good[-window:]


def _steps_in(file: Path, stage: str) -> set[int]:
    return {record["step"] for record in _records(file) if record["stage"] == stage}


def _records(file: Path) -> list[dict[str, Any]]:
    if not file.is_file():
        return []
    records = []
    for line in file.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            # The line that a killed run was writing.
            continue
    return records


class BadSteps:
    """Counts and writes down the bad steps of a stage, and gives up after too many in a row."""

    def __init__(self, recipe: Recipe, stage: str, place: Place):
        self._file = recipe.output_dir / BAD_STEPS_FILE
        self._stage = stage
        self._place = place
        self._limit = recipe.bad_steps.stop_after_in_a_row
        self._guards = recipe.loss_spike is not None
        self._in_a_row = 0

    def note(
        self,
        step: int,
        judgement: Judgement | None,
        bad_samples: dict[int, list[str]],
        model: Iterable[torch.nn.Module],
    ) -> None:
        """Take in a step, on all ranks together.

        step: 1-based. bad_samples: ids of the samples of each micro-batch (of the global batch) whose loss is not
        finite. Raises TrainingError at the last of `bad_steps.stop_after_in_a_row` dropped steps in a row.
        """
        self._in_a_row = self._in_a_row + 1 if judgement is not None and judgement.dropped else 0
        if judgement is None:
            return
        # Rare, and the same decision everywhere: only here do ranks tell each other more than numbers.
        found = from_all_ranks(_not_finite(model))
        record = {
            "stage": self._stage,
            "step": step,
            "problem": judgement.problem,
            "dropped": judgement.dropped,
            "micro_batches": [
                {"micro_batch": number, "data_rank": number % self._place.data_size, "samples": samples}
                for number, samples in bad_samples.items()
            ],
            "gradients_not_finite": {str(rank): names for rank, names in enumerate(found) if names},
        }
        # The first rank that raises may end the others: not before the line is written.
        rank_zero_does(lambda: self._write(record))
        if self._in_a_row >= self._limit:
            raise TrainingError(self._report(record))

    def _write(self, record: dict[str, Any]) -> None:
        with self._file.open("a") as file:
            file.write(json.dumps(record) + "\n")

    def _report(self, record: dict[str, Any]) -> str:
        where = [
            f"micro-batch {entry['micro_batch']} on data-parallel rank {entry['data_rank']}, "
            f"samples {', '.join(entry['samples'])}"
            for entry in record["micro_batches"]
        ]
        ranks = record["gradients_not_finite"]
        return (
            f"stage {self._stage}: {self._in_a_row} steps in a row were dropped, up to step {record['step']} "
            f"({record['problem']}"
            + (f"; {'; '.join(where)}" if where else "")
            + (f"; gradients not finite on ranks {', '.join(ranks)}" if ranks else "")
            + f"); look at these samples in {self._file}, lower stages.{self._stage}.learning_rate, or raise "
            + ("loss_spike.sigma or " if self._guards else "")
            + "bad_steps.stop_after_in_a_row"
        )


def _not_finite(model: Iterable[torch.nn.Module]) -> list[str]:
    """The first few parameters of this rank whose reduced gradient is not finite."""
    names: list[str] = []
    for chunk in model:
        for name, parameter in chunk.named_parameters():
            gradient = getattr(parameter, "main_grad", None)
            if gradient is not None and parameter.requires_grad and not bool(torch.isfinite(gradient).all()):
                names.append(name)
                if len(names) == _SHOWN_NAMES:
                    return names
    return names
