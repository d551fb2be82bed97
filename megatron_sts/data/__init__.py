"""From a user's LLaVA json to micro-batches, the same on every layout and after every resume.

LLaVA json / jsonl
    |  llava_json      read and checked record by record
    v
  Sample               one conversation, its image paths            sample
    |  templates       text segments, each supervised or not
    |  encode          one tokenization, labels by character offset
    v
  Encoded              token ids with one id per image, labels
    |  index           lengths of every sample, made once           index, index_cache
    |  sampler         which samples a step takes, a pure function
    |  images          decoded and processed pixels                 images, pixel_cache
    |  loader          the above, micro-batch by micro-batch
    v
  raw micro-batch      list of (Encoded, pixels)
    |  collate         image slots expanded, labels shifted, padded to the step's length
    v
  Batch
"""

from megatron_sts.data.collate import Batch, RawItem, collate
from megatron_sts.data.encode import IGNORED_LABEL, Encoded, encode, image_token_id, pad_token_id
from megatron_sts.data.images import ImageReader, load_image_processor
from megatron_sts.data.index import SampleIndex, build_index, check_lengths, measure_samples
from megatron_sts.data.index_cache import fingerprint, load_or_build, prepare_index
from megatron_sts.data.llava_json import read_llava_json
from megatron_sts.data.loader import MicroBatchLoader
from megatron_sts.data.pixel_cache import PixelCache
from megatron_sts.data.sample import IMAGE_TOKEN, Sample, Turn
from megatron_sts.data.sampler import StepSampler, rank_slice
from megatron_sts.data.templates import TEMPLATES, Segment, Template

__all__ = [
    "IGNORED_LABEL",
    "IMAGE_TOKEN",
    "TEMPLATES",
    "Batch",
    "Encoded",
    "ImageReader",
    "MicroBatchLoader",
    "PixelCache",
    "RawItem",
    "Sample",
    "SampleIndex",
    "Segment",
    "StepSampler",
    "Template",
    "Turn",
    "build_index",
    "check_lengths",
    "collate",
    "encode",
    "fingerprint",
    "image_token_id",
    "load_image_processor",
    "load_or_build",
    "measure_samples",
    "pad_token_id",
    "prepare_index",
    "rank_slice",
    "read_llava_json",
]
