"""Reads samples of a stage: tokens and labels of each, and the pictures that this rank's tower sees."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from megatron_sts.data.collate import Batch, RawItem, collate
from megatron_sts.data.encode import encode, encode_guide, image_token_id, pad_token_id
from megatron_sts.data.images import ImageReader
from megatron_sts.data.pixel_cache import PixelCache
from megatron_sts.data.sample import Sample
from megatron_sts.data.templates import Template
from megatron_sts.errors import DataError
from megatron_sts.parallel.device import has_gpu

RawMicroBatch = list[RawItem]


@dataclass(frozen=True)
class RawItems:
    """Samples as items of micro-batches.

    reader: reads the pictures; None where this rank needs tokens and labels only. cache: of decoded pictures; a worker
    process has one of its own. guided: whether the words of the human turns go along, to choose visual tokens by.
    own_images: of so many images of a micro-batch those that this rank reads; by default all.
    """

    samples: Sequence[Sample]
    template: Template
    tokenizer: PreTrainedTokenizerBase
    system_prompt: str | None
    reader: ImageReader | None
    cache: PixelCache
    guided: bool = False
    own_images: Callable[[int], range] = range

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, indices: Sequence[int]) -> RawMicroBatch:
        """The samples of one micro-batch; one with a picture that cannot be read is blank, and says so."""
        samples = [self.samples[index] for index in indices]
        share = self.own_images(sum(len(sample.images) for sample in samples))
        items: RawMicroBatch = []
        first = 0
        for index, sample in zip(indices, samples, strict=True):
            is_own = [number in share for number in range(first, first + len(sample.images))]
            items.append(self._item(int(index), sample, is_own))
            first += len(sample.images)
        return items

    def _item(self, index: int, sample: Sample, is_own: Sequence[bool]) -> RawItem:
        encoded = encode(sample, self.template, self.tokenizer, self.system_prompt)
        guide = encode_guide(sample, self.tokenizer) if self.guided else []
        reader = self.reader
        if reader is None:
            return RawItem(encoded, None, index, guide)
        try:
            pictures = [
                self.cache.get(picture, reader.read) if own else None
                for picture, own in zip(sample.images, is_own, strict=True)
            ]
        except DataError as error:
            pictures = [reader.blank() if own else None for own in is_own]
            return RawItem(encoded, pictures, index, guide, problem=str(error)).blank()
        return RawItem(encoded, pictures, index, guide)


def to_batch(
    items: RawMicroBatch,
    tokenizer: PreTrainedTokenizerBase,
    visual_tokens: int,
    length: int,
    packed: bool = False,
    multiple: int = 1,
) -> Batch:
    """A micro-batch with `visual_tokens` slots an image, padded to `length`; packed, multiple: as of `collate`."""
    ids = image_token_id(tokenizer), pad_token_id(tokenizer)
    return collate(items, visual_tokens, length, *ids, packed, has_gpu(), multiple)
