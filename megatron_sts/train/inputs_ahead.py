"""What a rank is given for each step, made ready while the step before runs."""

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import repeat
from types import TracebackType
from typing import Protocol, Self

import torch

from megatron_sts.data import MicroBatchLoader
from megatron_sts.data.raw_items import RawMicroBatch
from megatron_sts.data.sampler import StepSampler
from megatron_sts.parallel.device import SideStream
from megatron_sts.parallel.groups import Place
from megatron_sts.train.quarantine import Quarantine
from megatron_sts.train.step_input import StepInput


class InputMaker(Protocol):
    """The data of a stage, as far as inputs are made from it."""

    sampler: StepSampler
    total_steps: int

    def input_of(self, step: int, items: list[RawMicroBatch] | None, place: Place) -> StepInput:
        """From the items of a step's micro-batches; None where this rank reads none."""


@dataclass(frozen=True)
class _Made:
    """The input of a step. items: as they were read. maker, blank: what it was made by, and the samples without
    content in it."""

    items: list[RawMicroBatch]
    maker: InputMaker
    blank: frozenset[int]
    given: StepInput

    def problems(self) -> dict[int, str]:
        return {item.sample_index: item.problem for items in self.items for item in items if item.problem is not None}


class InputsAhead(Iterator[StepInput]):
    """Iterates over the steps of a stage.

    With `aside` a thread reads, collates and copies to the device what the next step needs while this one runs;
    without, all is done when it is first asked for. The inputs are the same. What the thread raises, `next` raises.

    All ranks go through the steps together: samples that are bad on one are blank on all. By `bad_ahead` and `told`
    they learn of that with a step's own sums, instead of by a collective at the start of the next.
    """

    def __init__(
        self,
        maker: InputMaker,
        place: Place,
        quarantine: Quarantine,
        loader: MicroBatchLoader | None,
        first_step: int,
        aside: bool,
    ):
        self._maker, self._place, self._quarantine, self._loader = maker, place, quarantine, loader
        self._loaded: Iterator[list[RawMicroBatch]] = repeat([]) if loader is None else iter(loader)
        self._thread = ThreadPoolExecutor(1, "inputs ahead") if aside else None
        self._stream = SideStream()
        self._step, self._waited = first_step, 0.0
        self._told: bool | None = None
        self._made: Future[_Made] | None = None
        self._begin()

    def _begin(self) -> None:
        """Have the thread make the coming step's input."""
        if self._thread is not None and self._step < self._maker.total_steps:
            self._made = self._thread.submit(self._make, self._maker, self._step, self._known())

    def _indices(self) -> list[int]:
        return self._maker.sampler.samples_of_step(self._step)

    def _known(self) -> frozenset[int]:
        return self._quarantine.known(self._indices())

    def _make(self, maker: InputMaker, step: int, blank: frozenset[int]) -> _Made:
        items = next(self._loaded)
        return _Made(items, maker, blank, self._given(maker, step, items, blank))

    def _given(self, maker: InputMaker, step: int, items: list[RawMicroBatch], blank: frozenset[int]) -> StepInput:
        settled = [[item.blank() if item.sample_index in blank else item for item in batch] for batch in items]
        return self._stream.do(
            lambda: self._on_device(maker.input_of(step, settled if self._loader is not None else None, self._place))
        )

    def _on_device(self, given: StepInput) -> StepInput:
        if given.batches is None or (given.teacher is not None and self._place.context_size > 1):
            # A teacher's tokens are sent to their ranks by labels on the CPU (train/distillation.py).
            return given
        device = torch.cuda.current_device()
        teacher = None if given.teacher is None else self._on_device(given.teacher)
        return replace(given, batches=[batch.on_device(device) for batch in given.batches], teacher=teacher)

    def _ready(self) -> Future[_Made]:
        """The coming step's input, waited for, or the error that it met."""
        began = time.perf_counter()
        if self._made is None:
            self._made = Future()
            try:
                self._made.set_result(self._make(self._maker, self._step, self._known()))
            except Exception as error:
                self._made.set_exception(error)
        self._made.exception()
        self._waited += time.perf_counter() - began
        return self._made

    def bad_ahead(self) -> bool:
        """Whether this rank has found a sample of the coming step that cannot be read; waits until it is known."""
        if self._step == self._maker.total_steps:
            return False
        ready = self._ready()
        return ready.exception() is None and bool(ready.result().problems())

    def told(self, bad_ahead: bool) -> None:
        """Take in whether `bad_ahead` holds on any rank; asked of all between the same two steps."""
        self._told = bad_ahead

    def take_up(self, maker: InputMaker) -> None:
        """Make the inputs from the coming one on by other plans."""
        self._maker = maker

    def take_wait(self) -> float:
        """Seconds for which the main thread waited for inputs since this was last asked."""
        waited, self._waited = self._waited, 0.0
        return waited

    def __next__(self) -> StepInput:
        """The coming step's; all ranks together.

        Raises DataError, on all ranks, where more samples are bad than may be.
        """
        if self._step == self._maker.total_steps:
            raise StopIteration
        made, told = self._ready().result(), self._told
        self._made = self._told = None
        blank = self._quarantine.settle(self._step, self._indices(), made.problems(), told)
        given = made.given
        if blank != made.blank or self._maker is not made.maker:
            given = self._given(self._maker, self._step, made.items, blank)
        self._stream.join(tensor for batch in given.all_batches() for tensor in batch.device_tensors())
        self._step += 1
        self._begin()
        return given

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
