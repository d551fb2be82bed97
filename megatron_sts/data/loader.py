"""Loads the micro-batches of a range of steps, ahead of the training loop when it has workers.

Where a run stands is the step alone: a loader that starts at step t gives what one that started at 0 gives
from t on, on any number of data-parallel ranks and with any number of workers. `state_dict` and `load_state_dict` are
those of torchdata's StatefulDataLoader, without the states of samplers and workers that it keeps for want of such an
order.
"""

import signal
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from megatron_sts.data.encode import image_token_id
from megatron_sts.data.packing import MicroBatchesOfStep
from megatron_sts.data.raw_items import RawItems, RawMicroBatch
from megatron_sts.data.sampler import StepSampler, rank_slice
from megatron_sts.errors import DataError, MegatronStsError
from megatron_sts.stop_signals import STOP_SIGNALS


class MicroBatchLoader:
    """One data-parallel rank's micro-batches of the steps from 0, or where `load_state_dict` says, to `last_step`, the
    last not included.

    Args:
        items: reads the samples.
        workers: processes that load ahead; 0 loads in this one.
        packed: where samples are packed, which of them form the micro-batches of a step; None: `micro` neighbours each.

    Raises:
        DataError: from the constructor, the tokenizer has no `<image>`; while iterating, a worker process was lost.
        ConfigError: the global batch does not divide among the ranks.
    """

    def __init__(
        self,
        items: RawItems,
        sampler: StepSampler,
        data_rank: int,
        data_size: int,
        micro: int,
        last_step: int,
        workers: int = 0,
        packed: MicroBatchesOfStep | None = None,
    ) -> None:
        assert sampler.count == len(items)
        # Refused here, before any step.
        image_token_id(items.tokenizer)
        self._micro_batches = len(rank_slice(list(range(sampler.global_batch)), data_rank, data_size, micro))
        self._numbers = _Numbers(0, last_step, self._micro_batches)
        self._next_step = 0
        dataset = _MicroBatches(items, sampler, data_rank, data_size, micro, packed)
        self._loader: DataLoader[RawMicroBatch | MegatronStsError] = DataLoader(
            dataset,
            sampler=self._numbers,
            batch_size=None,
            collate_fn=_unchanged,
            num_workers=workers,
            persistent_workers=workers > 0,
            worker_init_fn=_start_worker,
            # DataLoader draws a seed for its workers; from the default generator it would shift later draws.
            generator=torch.Generator(),
        )

    def __len__(self) -> int:
        """The number of steps."""
        return self._numbers.last_step - self._numbers.first_step

    def state_dict(self) -> dict[str, int]:
        """Where the loader stands: `step`, that of the micro-batches which `next` would give. The same on all ranks."""
        return {"step": self._next_step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Begin at the step of a `state_dict`, of any rank of any layout, from the next `iter` on."""
        assert 0 <= state["step"] <= self._numbers.last_step
        self._numbers.first_step = self._next_step = state["step"]

    def __iter__(self) -> Iterator[list[RawMicroBatch]]:
        """For each step its raw micro-batches; `to_batch` makes tensors of them.

        An item with a picture that cannot be read is blank, and says so in its `problem`. Workers start at once, and
        not in the thread that asks for the first step, which need not be the main one.
        """
        return self._steps(iter(self._loader))

    def _steps(self, loaded: Iterator[RawMicroBatch | MegatronStsError]) -> Iterator[list[RawMicroBatch]]:
        for number in range(self._numbers.first_step, self._numbers.last_step):
            step = []
            for _ in range(self._micro_batches):
                micro_batch = self._next(loaded)
                if isinstance(micro_batch, MegatronStsError):
                    raise micro_batch
                step.append(micro_batch)
            self._next_step = number + 1
            yield step

    def _next(self, loaded: Iterator[RawMicroBatch | MegatronStsError]) -> RawMicroBatch | MegatronStsError:
        try:
            return next(loaded)
        except RuntimeError as error:
            # DataLoader has no class of its own for a worker that was killed, for want of memory as a rule.
            if "DataLoader worker" not in str(error):
                raise
            raise DataError(
                f"data.workers: found {self._loader.num_workers}, and one of these processes was lost ({error}); give "
                "the machine more memory or the run fewer workers, and start it again"
            ) from error


@dataclass
class _Numbers(Sampler[int]):
    """The numbers of a rank's micro-batches, through all steps."""

    first_step: int
    last_step: int
    micro_batches: int

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.first_step * self.micro_batches, self.last_step * self.micro_batches))

    def __len__(self) -> int:
        return (self.last_step - self.first_step) * self.micro_batches


@dataclass(frozen=True)
class _MicroBatches(Dataset[RawMicroBatch | MegatronStsError]):
    """One rank's micro-batches, numbered through all steps from step 0 on."""

    items: RawItems
    sampler: StepSampler
    data_rank: int
    data_size: int
    micro: int
    packed: MicroBatchesOfStep | None

    def __getitem__(self, number: int) -> RawMicroBatch | MegatronStsError:
        step, micro_batch = divmod(number, self.sampler.global_batch // (self.micro * self.data_size))
        if self.packed is not None:
            own = self.packed(step)[self.data_rank :: self.data_size]
        else:
            own = rank_slice(self.sampler.samples_of_step(step), self.data_rank, self.data_size, self.micro)
        try:
            return self.items.read(own[micro_batch])
        except MegatronStsError as error:
            # Raised in a worker, it would reach the user wrapped in that process's traceback.
            return error


def _unchanged(item: RawMicroBatch | MegatronStsError) -> RawMicroBatch | MegatronStsError:
    """Keeps DataLoader from converting what a data set returns."""
    return item


def _start_worker(worker: int) -> None:
    # A signal that a scheduler or a terminal sends to all processes is the training process's to heed: it saves first.
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    # Many workers with many threads each would fight for the cores.
    torch.set_num_threads(1)
