"""What is in a data file and its image folder, and all that is wrong with it, without training."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedTokenizerBase

from megatron_sts.data.encode import count_supervised, encode
from megatron_sts.data.index import Progress, SampleIndex
from megatron_sts.data.lengths import OverLong, fit_lengths
from megatron_sts.data.llava_json import scan_llava_json
from megatron_sts.data.pictures import check_is_file, read_picture, resolve_image
from megatron_sts.data.sample import Sample
from megatron_sts.data.templates import Template
from megatron_sts.errors import DataError

# Items that a worker process takes at once.
_CHUNK = 64

Item = TypeVar("Item")
Found = TypeVar("Found")


@dataclass(frozen=True)
class TextSettings:
    """How the texts of the records are measured; the fields are those of a stage's recipe.

    visual_tokens: of an image, before compression. kept_tokens: after it.
    """

    tokenizer: PreTrainedTokenizerBase
    template: Template
    system_prompt: str | None
    visual_tokens: int
    kept_tokens: int
    max_tokens: int
    over_long: OverLong

    def measure(self, sample: Sample) -> tuple[int, int, int] | str:
        """(text tokens, images, supervised tokens) of a sample, or why it cannot be encoded."""
        try:
            encoded = encode(sample, self.template, self.tokenizer, self.system_prompt)
        except DataError as problem:
            return str(problem)
        images = len(sample.images)
        return len(encoded.token_ids) - images, images, count_supervised(encoded.labels)


@dataclass(frozen=True)
class _ImageCheck:
    """Opens pictures of a folder, and decodes them where `decodes`."""

    root: Path
    pads: bool
    decodes: bool

    def __call__(self, path: str) -> str | None:
        """What is wrong with a picture."""
        try:
            file = resolve_image(self.root, path)
            if self.decodes:
                read_picture(file, pads=self.pads)
            else:
                check_is_file(file)
        except DataError as problem:
            return str(problem)
        return None


def check_data(
    data: Path,
    images: Path | None,
    text: TextSettings | None = None,
    pads: bool = False,
    decodes: bool = True,
    workers: int = 0,
    progress: Callable[[str], Progress] = lambda what: lambda done, total: None,
) -> dict[str, Any]:
    """Looks at every record and every picture that is named.

    Args:
        images: the image folder; None: no picture is looked at.
        text: how lengths are counted; None: they are not.
        pads: pictures will be padded to a square, which limits their size further.
        decodes: whether pictures are decoded; otherwise only their files are looked for.
        workers: processes that do it; 0: this one.
        progress: given what is counted, returns what is told how far it is.

    Returns:
        Plain values, fit for json: `data`, `records`, `usable`, `text_only`, `turns`, `images`, `lengths` (None
        without `text`), and under `problems` by kind what is wrong, each with the record's id. A record is usable
        where training would take it.

    Raises:
        DataError: the file cannot be read or holds no record, or `images` is no folder.
    """
    if images is not None and not images.is_dir():
        raise DataError(f"{images}: is no folder; give the folder of the images")
    samples, bad = scan_llava_json(data)
    problems: dict[str, list[dict[str, Any]]] = {
        "bad_records": [{"record": one.number, "id": one.id, "problem": one.problem} for one in bad]
    }
    repeated = [name for name, count in Counter(sample.id for sample in samples).items() if count > 1]
    problems["repeated_ids"] = [{"id": name} for name in repeated]

    paths = list(dict.fromkeys(path for sample in samples for path in sample.images))
    unusable: set[int] = set()
    broken: dict[str, str] = {}
    if images is not None:
        check = _ImageCheck(images.resolve(), pads, decodes)
        found = _in_workers(check, paths, workers, progress("images"))
        broken = {path: problem for path, problem in zip(paths, found, strict=True) if problem is not None}
    problems["images"] = []
    for number, sample in enumerate(samples):
        for path in sample.images:
            if path in broken:
                problems["images"].append({"id": sample.id, "image": path, "problem": broken[path]})
                unusable.add(number)

    lengths = None
    if text is not None and samples:
        measured = _in_workers(text.measure, samples, workers, progress("records"))
        lengths, too_long = _lengths(samples, measured, text, problems)
        unusable |= too_long
    return {
        "data": str(data),
        "records": len(samples) + len(bad),
        "usable": len(samples) - len(unusable),
        "text_only": sum(not sample.images for sample in samples),
        "turns": _spread([len(sample.turns) for sample in samples]),
        "images": {
            "named": sum(len(sample.images) for sample in samples),
            "files": len(paths),
            "bad_files": len(broken) if images is not None else None,
            "most_in_a_record": max((len(sample.images) for sample in samples), default=0),
        },
        "lengths": lengths,
        "problems": problems,
    }


def _lengths(
    samples: Sequence[Sample],
    measured: Sequence[tuple[int, int, int] | str],
    text: TextSettings,
    problems: dict[str, list[dict[str, Any]]],
) -> tuple[dict[str, Any] | None, set[int]]:
    """The lengths of the samples that can be encoded; problems are added, with the numbers of their samples."""
    refused = [(number, found) for number, found in enumerate(measured) if isinstance(found, str)]
    problems["cannot_be_encoded"] = [{"id": samples[number].id, "problem": found} for number, found in refused]
    counted = [(number, found) for number, found in enumerate(measured) if not isinstance(found, str)]
    silent = [number for number, (_, _, supervised) in counted if supervised == 0]
    problems["without_supervision"] = [{"id": samples[number].id} for number in silent]
    out = {number for number, _ in refused} | set(silent)
    if not counted:
        return None, out

    numbers = [number for number, _ in counted]
    index = SampleIndex(*np.array([found for _, found in counted], dtype=np.int32).T)
    before, after = index.lengths(text.visual_tokens), index.lengths(text.kept_tokens)
    long = np.flatnonzero(after > text.max_tokens).tolist()
    problems["over_long"] = [{"id": samples[numbers[position]].id, "tokens": int(after[position])} for position in long]
    cut = left_out = 0
    if text.over_long == "error":
        out |= {numbers[position] for position in long}
    else:
        encodable = [samples[number] for number in numbers]
        arguments = (text.template, text.tokenizer, text.system_prompt)
        fitted = fit_lengths(index, encodable, *arguments, text.kept_tokens, text.max_tokens, text.over_long)
        cut, left_out = len(fitted.cut), len(fitted.left_out)
        out |= {numbers[position] for position in fitted.left_out}
    described = {
        "template": text.template.name,
        "text": _spread(index.text_tokens),
        "supervised": _spread(index.supervised),
        "visual_tokens": text.visual_tokens,
        "before_compression": _spread(before),
        "kept_tokens": text.kept_tokens,
        "after_compression": _spread(after),
        "max_tokens": text.max_tokens,
        "over_long": {"policy": text.over_long, "records": len(long), "cut": cut, "left_out": left_out},
    }
    return described, out


def _spread(values: Sequence[int] | np.ndarray) -> dict[str, float] | None:
    if not len(values):
        return None
    p50, p99 = np.percentile(values, [50, 99], method="higher")
    return {"mean": round(float(np.mean(values)), 1), "p50": int(p50), "p99": int(p99), "max": int(np.max(values))}


@dataclass(frozen=True)
class _Chunks(Dataset[list[Found]], Generic[Item, Found]):
    """What a function makes of some items, chunk by chunk."""

    function: Callable[[Item], Found]
    items: Sequence[Item]

    def __len__(self) -> int:
        return -(-len(self.items) // _CHUNK)

    def __getitem__(self, number: int) -> list[Found]:
        return [self.function(item) for item in self.items[number * _CHUNK : (number + 1) * _CHUNK]]


def _in_workers(
    function: Callable[[Item], Found], items: Sequence[Item], workers: int, progress: Progress
) -> list[Found]:
    """`function` of every item, in order, in as many processes; all of them in this one where there are few."""
    chunks = _Chunks(function, items)
    loader = DataLoader(chunks, batch_size=None, collate_fn=_unchanged, num_workers=min(workers, len(chunks)))
    found: list[Found] = []
    for chunk in _loaded(loader):
        found.extend(chunk)
        progress(len(found), len(items))
    return found


def _loaded(loader: DataLoader[list[Found]]) -> Iterator[list[Found]]:
    try:
        yield from loader
    except RuntimeError as error:
        raise DataError(f"a worker process ended ({error}); give fewer with --workers") from error


def _unchanged(chunk: list[Found]) -> list[Found]:
    """Keeps DataLoader from converting what a data set returns."""
    return chunk
