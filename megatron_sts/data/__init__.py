"""From a user's LLaVA json to micro-batches, the same on every layout and after every resume.

LLaVA json / jsonl / webdataset shards
    |  stored_samples  where each record lies (records); read and checked one by one (llava_json)
    v
  Sample               one conversation, its pictures               sample
    |  templates       text segments, each supervised or not
    |  encode          one tokenization, labels by character offset
    v
  Encoded              token ids with one id per image, labels
    |  index           lengths of every sample, made once           index, index_cache
    |  lengths         samples that are too long: shortened or set aside
    |  prepared        what is trained on, and what was set aside for which reason
    |  sampler         which samples a step takes, a pure function
    |  images          decoded and processed pixels                 pictures, images, pixel_cache
    |  raw_items       the above, for the samples of one micro-batch
    |  loader          micro-batch by micro-batch, ahead of the training loop
    v
  raw micro-batch      list of RawItem: Encoded, pixels, number of the sample, words to choose visual tokens by
    |  collate         image slots expanded, labels shifted, padded to the step's length
    v
  Batch

Beside the way: check looks at data before a run, pack writes it as shards.
"""

from megatron_sts.data.collate import NO_TOKEN, Batch, RawItem, collate
from megatron_sts.data.encode import (
    IGNORED_LABEL,
    Encoded,
    adds_special_tokens,
    encode,
    encode_guide,
    image_token_id,
    lacks_guide,
    pad_token_id,
)
from megatron_sts.data.images import ImageReader, load_image_processor
from megatron_sts.data.index import SampleIndex, measure_samples
from megatron_sts.data.index_cache import fingerprint, load_or_build
from megatron_sts.data.lengths import Fitted, FittedSamples, fit_lengths
from megatron_sts.data.llava_json import sample_of_record
from megatron_sts.data.loader import MicroBatchLoader
from megatron_sts.data.packing import cut_by_length, with_tail
from megatron_sts.data.pixel_cache import PixelCache
from megatron_sts.data.prepared import PreparedSamples, allowed_bad_records, prepare_samples
from megatron_sts.data.raw_items import RawItems, to_batch
from megatron_sts.data.sample import IMAGE_TOKEN, Picture, Sample, Turn, placed_images
from megatron_sts.data.sampler import LengthGroups, StepSampler, rank_slice
from megatron_sts.data.stored_samples import BadRecord, StoredSamples, read_samples, scan_records
from megatron_sts.data.templates import TEMPLATES, Segment, Template, find_template
from megatron_sts.data.tokenizer import load_tokenizer

__all__ = [
    "IGNORED_LABEL",
    "IMAGE_TOKEN",
    "NO_TOKEN",
    "TEMPLATES",
    "BadRecord",
    "Batch",
    "Encoded",
    "Fitted",
    "FittedSamples",
    "ImageReader",
    "LengthGroups",
    "MicroBatchLoader",
    "Picture",
    "PixelCache",
    "PreparedSamples",
    "RawItem",
    "RawItems",
    "Sample",
    "SampleIndex",
    "Segment",
    "StepSampler",
    "StoredSamples",
    "Template",
    "Turn",
    "adds_special_tokens",
    "allowed_bad_records",
    "collate",
    "cut_by_length",
    "encode",
    "encode_guide",
    "find_template",
    "fingerprint",
    "fit_lengths",
    "image_token_id",
    "lacks_guide",
    "load_image_processor",
    "load_or_build",
    "load_tokenizer",
    "measure_samples",
    "pad_token_id",
    "placed_images",
    "prepare_samples",
    "rank_slice",
    "read_samples",
    "sample_of_record",
    "scan_records",
    "to_batch",
    "with_tail",
]
