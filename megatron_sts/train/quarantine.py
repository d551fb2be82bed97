"""Records that turn out bad: set aside on all ranks alike, written down, and counted."""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
import torch.distributed as dist

from megatron_sts.config import QUARANTINE_FILE, Recipe, StageConfig
from megatron_sts.data import PreparedSamples, allowed_bad_records
from megatron_sts.errors import DataError, shown
from megatron_sts.parallel.together import from_all_ranks
from megatron_sts.train.progress import forget_steps_after

logger = logging.getLogger(__name__)

_SHOWN_RECORDS = 10


@dataclass(frozen=True)
class BadSample:
    """A line of quarantine.jsonl. step: 1-based, which found it; 0: set aside before the first. record: its number,
    0-based, in the stage's data."""

    stage: str
    step: int
    record: int
    id: str
    problem: str


class Quarantine:
    """The bad samples of one stage, the same on every rank.

    Those that were found bad before training are not among its samples. One found later stays there, blank in every
    later epoch, whether or not its images can be read by then. Its memory is quarantine.jsonl in the run's output_dir:
    a resumed run decides as the uninterrupted one, as long as that file is there.
    """

    def __init__(self, recipe: Recipe, stage: StageConfig, prepared: PreparedSamples, first_step: int):
        """`first_step`: steps done; what was found later is forgotten. All ranks together.

        Raises DataError, on all ranks, where the stage was begun with other records set aside.
        """
        self._stage = stage
        self._prepared = prepared
        self._file = recipe.output_dir / QUARANTINE_FILE
        self._is_writer = not dist.is_initialized() or dist.get_rank() == 0
        lines: list[BadSample] = []
        if self._is_writer:
            forget_steps_after(self._file, stage.name, first_step or -1)
            if not first_step:
                self._write([BadSample(stage.name, 0, bad.number, bad.id or "", bad.problem) for bad in prepared.bad])
            lines = self._read()
        # One rank reads, since the others may not see the file, or not yet.
        lines = from_all_ranks(lines)[0]
        self._check_unchanged({line.record for line in lines if line.step == 0})
        places = {int(number): place for place, number in enumerate(prepared.samples.numbers)} if lines else {}
        self._found = {places[line.record]: line for line in lines if line.step and line.record in places}

    def known(self, indices: Sequence[int]) -> frozenset[int]:
        """Those of some samples that are known to be bad."""
        return frozenset(index for index in indices if index in self._found)

    def settle(self, step: int, indices: Sequence[int], own: dict[int, str], told: bool | None) -> frozenset[int]:
        """Those of a 0-based step's samples that are bad. All ranks together.

        indices: the samples of the step. own: the problems of those that this rank has found bad; may be none. told:
        whether any rank has found any, where all know that already; None: they tell each other by one small collective.

        Raises:
            DataError: on all ranks, there are more than `data.max_bad_records`.
        """
        if self._stage.data.has_images and (self._on_any_rank(bool(own)) if told is None else told):
            self._take_in(step + 1, own)
        return self.known(indices)

    def _on_any_rank(self, own: bool) -> bool:
        """Whether any rank found anything; what it was is told only then, since that takes longer."""
        if not dist.is_initialized():
            return own
        flag = torch.tensor(float(own), device=torch.cuda.current_device())
        dist.all_reduce(flag)
        return bool(flag.item())

    def _take_in(self, step: int, own: dict[int, str]) -> None:
        # Of ranks that read the same picture, the first has the word.
        problems: dict[int, str] = {}
        for of_rank in from_all_ranks(own):
            problems = of_rank | problems
        for index in sorted(problems.keys() - self._found.keys()):
            samples = self._prepared.samples
            number = int(samples.numbers[index])
            bad = BadSample(self._stage.name, step, number, samples[index].id, problems[index])
            self._found[index] = bad
            if self._is_writer:
                logger.warning("record %s is set aside: %s", shown(bad.id), bad.problem)
                self._write([bad])
        count = len(self._prepared.bad) + len(self._found)
        allowed = allowed_bad_records(self._stage.data.max_bad_records, self._prepared.records)
        if count > allowed:
            last = list(self._found.values())[-_SHOWN_RECORDS:]
            listed = "\n".join(f"  record {shown(bad.id)}: {bad.problem}" for bad in last)
            raise DataError(
                f"data.max_bad_records: found {count} records of stage {self._stage.name} that cannot be used, "
                f"{allowed} of {self._prepared.records} are allowed; fix or remove them ({self._file} has them all) "
                f"or raise it. The last ones:\n{listed}"
            )

    def _check_unchanged(self, before: set[int]) -> None:
        """Raise DataError where other records were set aside when the stage began: the order would be another."""
        now = {bad.number for bad in self._prepared.bad}
        if before != now:
            raise DataError(
                f"stages.{self._stage.name}.data: {len(before)} records were set aside when the stage began, as they "
                f"could not be used ({self._file}), and {len(now)} are now; they differ in record {min(before ^ now)}. "
                "Put its image back as it was then, or choose another output_dir to start anew"
            )

    def _write(self, lines: Sequence[BadSample]) -> None:
        if lines:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(asdict(line)) + "\n" for line in lines)

    def _read(self) -> list[BadSample]:
        if not self._file.is_file():
            return []
        lines = map(json.loads, self._file.read_text(encoding="utf-8").splitlines())
        of_stage = [line for line in lines if line["stage"] == self._stage.name]
        # Runs that were begun when nothing was set aside before training call the record "sample".
        return [
            BadSample(line["stage"], line["step"], line.get("record", line.get("sample")), line["id"], line["problem"])
            for line in of_stage
        ]
