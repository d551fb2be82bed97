"""Records that turn out bad while training: left out on all ranks alike, written down, and counted."""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
import torch.distributed as dist

from megatron_sts.config import QUARANTINE_FILE, Recipe, StageConfig
from megatron_sts.data import RawItem, Sample
from megatron_sts.errors import DataError, shown
from megatron_sts.parallel.together import from_all_ranks
from megatron_sts.train.progress import forget_steps_after

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BadSample:
    """A line of quarantine.jsonl. step: 1-based, which found it. sample: its number in the stage's data."""

    stage: str
    step: int
    sample: int
    id: str
    problem: str


class Quarantine:
    """The bad samples of one stage, the same on every rank.

    Once in, a sample is blank in every later epoch, whether or not its pictures can be read by then. Its memory is
    quarantine.jsonl in the run's output_dir: a resumed run decides as the uninterrupted one, as long as that file is
    there.
    """

    def __init__(self, recipe: Recipe, stage: StageConfig, samples: Sequence[Sample], first_step: int):
        """`first_step`: steps done; what was found later is forgotten. All ranks together."""
        self._stage = stage
        self._samples = samples
        self._file = recipe.output_dir / QUARANTINE_FILE
        self._is_writer = not dist.is_initialized() or dist.get_rank() == 0
        if self._is_writer:
            forget_steps_after(self._file, stage.name, first_step)
        # One rank reads, since the others may not see the file, or not yet.
        self._found: dict[int, BadSample] = from_all_ranks(self._read() if self._is_writer else {})[0]

    def of_step(self, step: int, indices: Sequence[int], raw: Sequence[Sequence[RawItem]]) -> frozenset[int]:
        """Those of a 0-based step's samples that are bad. All ranks together, by one small collective.

        indices: the samples of the step. raw: those of them that this rank has loaded; may be none.

        Raises:
            DataError: on all ranks, there are more than `data.max_bad_records`.
        """
        if not self._stage.data.has_images:
            return frozenset()
        problems = {item.sample_index: item.problem for items in raw for item in items if item.problem is not None}
        if self._on_any_rank([index in problems for index in indices]):
            self._take_in(step + 1, problems)
        return frozenset(index for index in indices if index in self._found)

    def _on_any_rank(self, own: list[bool]) -> bool:
        """Whether any rank found anything; what it was is told only then, since that takes longer."""
        if not dist.is_initialized():
            return any(own)
        flag = torch.tensor(float(any(own)), device=torch.cuda.current_device())
        dist.all_reduce(flag)
        return bool(flag.item())

    def _take_in(self, step: int, own: dict[int, str]) -> None:
        # Of ranks that read the same picture, the first has the word.
        problems: dict[int, str] = {}
        for of_rank in from_all_ranks(own):
            problems = of_rank | problems
        for index in sorted(problems.keys() - self._found.keys()):
            bad = BadSample(self._stage.name, step, index, self._samples[index].id, problems[index])
            self._found[index] = bad
            if self._is_writer:
                logger.warning("record %s is left out: %s", shown(bad.id), bad.problem)
                with self._file.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(asdict(bad)) + "\n")
        allowed = self._stage.data.max_bad_records
        if len(self._found) > allowed:
            listed = "\n".join(f"  record {shown(bad.id)}: {bad.problem}" for bad in self._found.values())
            raise DataError(
                f"data.max_bad_records: found {len(self._found)} records of stage {self._stage.name} with a picture "
                f"that cannot be read, {allowed} are allowed; mend or remove them, or raise it:\n{listed}"
            )

    def _read(self) -> dict[int, BadSample]:
        if not self._file.is_file():
            return {}
        lines = map(json.loads, self._file.read_text(encoding="utf-8").splitlines())
        found = [BadSample(**line) for line in lines if line["stage"] == self._stage.name]
        return {bad.sample: bad for bad in found}
