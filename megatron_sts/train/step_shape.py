"""The sizes of one step."""

from dataclasses import dataclass

from megatron_sts.parallel.groups import Place


@dataclass(frozen=True)
class StepShape:
    """Sizes of one step that all ranks agree on without sending them.

    length: padded sequence length. rows: sequences of that length. images: in the global batch. tokens: positions
    that are not padding. segments: by micro-batch of the global batch, the lengths that attention keeps apart in its
    one packed row; None where samples are not packed and each is a row.
    """

    length: int
    rows: int
    images: int
    tokens: int
    segments: tuple[tuple[int, ...], ...] | None

    def own_segments(self, place: Place) -> tuple[tuple[int, ...], ...] | None:
        """Those of this rank's micro-batches, on every pipeline stage."""
        return None if self.segments is None else self.segments[place.data_rank :: place.data_size]
