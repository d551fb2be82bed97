"""Shows that the loader follows the sampler on every rank, resumes anywhere and passes errors on."""

import os
import pickle
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from megatron_sts.data import (
    TEMPLATES,
    ImageReader,
    MicroBatchLoader,
    PixelCache,
    RawItems,
    Sample,
    StepSampler,
    Turn,
    encode,
    image_token_id,
    load_image_processor,
    to_batch,
)
from megatron_sts.errors import ConfigError, DataError
from megatron_sts.parallel.exchange import own_share

VICUNA = TEMPLATES["vicuna_v1"]
WORDS = ["two", "five", "yes", "no", "two five", "five two", "yes no", "no yes"]


@pytest.fixture
def samples(make_sample: Callable[..., Sample]) -> list[Sample]:
    return [
        make_sample("<image>\nWhat digit is it?", word, images=(f"{number}.png",), id=str(number))
        for number, word in enumerate(WORDS)
    ]


@pytest.fixture
def make_loader(
    samples: list[Sample], word_tokenizer: PreTrainedTokenizerFast, image_folder: Path
) -> Callable[..., MicroBatchLoader]:
    def make(**changes: Any) -> MicroBatchLoader:
        reader = changes.pop("reader", ImageReader(load_image_processor(None, "siglip", 8), image_folder))
        cache, share = PixelCache(changes.pop("cache_bytes", 0)), changes.pop("own_images", range)
        arguments: dict[str, Any] = {
            "items": RawItems(samples, VICUNA, word_tokenizer, "", reader, cache, own_images=share),
            "sampler": StepSampler(count=8, global_batch=4, seed=1),
            "data_rank": 0,
            "data_size": 1,
            "micro": 2,
            "last_step": 5,
        }
        first_step = changes.pop("first_step", 0)
        loader = MicroBatchLoader(**(arguments | changes))
        loader.load_state_dict({"step": first_step})
        return loader

    return make


def content(loader: MicroBatchLoader) -> list[list[list[tuple[list[int], float | None]]]]:
    """Of each item the tokens and the colour of its picture."""
    return [
        [
            [(item.encoded.token_ids, item.pictures[0][0, 0, 0].item() if item.pictures else None) for item in items]
            for items in step
        ]
        for step in loader
    ]


def test_steps_are_those_of_the_sampler(
    make_loader: Callable[..., MicroBatchLoader],
    samples: list[Sample],
    word_tokenizer: PreTrainedTokenizerFast,
) -> None:
    loader = make_loader()
    loaded = content(loader)
    assert len(loader) == len(loaded) == 5
    sampler = StepSampler(count=8, global_batch=4, seed=1)
    for step, micro_batches in enumerate(loaded):
        assert [len(items) for items in micro_batches] == [2, 2]
        flat = [item for items in micro_batches for item in items]
        for (token_ids, colour), number in zip(flat, sampler.samples_of_step(step), strict=True):
            assert token_ids == encode(samples[number], VICUNA, word_tokenizer, "").token_ids
            assert colour == pytest.approx(30 * number / 127.5 - 1, abs=1e-5)


def test_a_later_start_gives_the_same_steps(make_loader: Callable[..., MicroBatchLoader]) -> None:
    assert content(make_loader(first_step=3)) == content(make_loader())[3:]
    assert content(make_loader(first_step=5)) == []


def test_ranks_together_load_the_step(make_loader: Callable[..., MicroBatchLoader]) -> None:
    alone = content(make_loader(micro=1))
    ranks = [content(make_loader(micro=1, data_rank=rank, data_size=2)) for rank in range(2)]
    for step in range(5):
        dealt = [items for together in zip(*(rank[step] for rank in ranks), strict=True) for items in together]
        assert dealt == alone[step]


@pytest.mark.parametrize("workers", [0, 1])
def test_no_sample_is_lost_or_repeated_over_resumes_on_other_numbers_of_ranks(
    make_loader: Callable[..., MicroBatchLoader], workers: int
) -> None:
    taken: list[int] = []
    state = {"step": 0}
    for steps, data_size in ((1, 1), (1, 2), (2, 4), (1, 1), (1, 2)):
        states = []
        for rank in range(data_size):
            arguments = {"micro": 1, "data_rank": rank, "data_size": data_size, "last_step": 9, "reader": None}
            loader = make_loader(**arguments, workers=workers if rank == 0 else 0)
            loader.load_state_dict(state)
            assert len(loader) == 9 - state["step"] and loader.state_dict() == state
            # Workers are ahead of what was handed out; the state is not.
            for step in islice(loader, steps):
                taken.extend(item.sample_index for items in step for item in items)
            states.append(loader.state_dict())
        assert states == [{"step": state["step"] + steps}] * data_size
        state = states[0]
    # Three epochs of eight samples in six steps of four; the parts end in the middle of two of them.
    assert sorted(taken) == sorted([*range(8)] * 3)


def test_workers_change_nothing(make_loader: Callable[..., MicroBatchLoader]) -> None:
    loader = make_loader(workers=2, cache_bytes=1 << 20)
    expected = content(make_loader())
    assert content(loader) == expected
    # A second pass uses the same workers and their caches.
    assert content(loader) == expected


def test_the_cache_spares_reading(
    make_loader: Callable[..., MicroBatchLoader], monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[str] = []
    read = ImageReader.read

    def counted(self: ImageReader, path: str) -> torch.Tensor:
        reads.append(path)
        return read(self, path)

    monkeypatch.setattr(ImageReader, "read", counted)
    cached = content(make_loader(cache_bytes=1 << 20))
    assert len(reads) == len(set(reads)) == 8
    reads.clear()
    assert content(make_loader()) == cached
    assert len(reads) == 20


def test_a_rank_without_reader_loads_no_pixels(make_loader: Callable[..., MicroBatchLoader]) -> None:
    with_pixels, without = content(make_loader()), content(make_loader(reader=None))
    assert [[[(tokens, None) for tokens, _ in items] for items in step] for step in with_pixels] == without


def test_ranks_that_share_a_micro_batch_read_each_picture_once(
    make_loader: Callable[..., MicroBatchLoader],
    samples: list[Sample],
    image_folder: Path,
    word_tokenizer: PreTrainedTokenizerFast,
) -> None:
    # Two pictures in the last sample, so that a share may end inside of one.
    last = samples[7]
    samples[7] = replace(last, images=("7.png", "6.png"), turns=(Turn("human", "<image><image>"), *last.turns[1:]))
    (image_folder / "6.png").write_text("not a picture")
    alone = [item for step in make_loader(micro=4, last_step=2) for items in step for item in items]
    ranks = []
    for rank in range(3):
        share = partial(own_share, rank=rank, size=3)
        loader = make_loader(micro=4, last_step=2, own_images=share)
        raw = list(loader)
        ranks.append([item for step in raw for items in step for item in items])
        for step in raw:
            (batch,) = (to_batch(items, word_tokenizer, visual_tokens=3, length=40) for items in step)
            own = share(batch.image_rows.size(0))
            assert (0 if batch.pixels is None else batch.pixels.size(0)) == len(own)
    for whole, *parts in zip(alone, *ranks, strict=True):
        assert whole.pictures is not None
        for place, picture in enumerate(whole.pictures):
            held = [part.pictures[place] for part in parts if part.pictures and part.pictures[place] is not None]
            (own,) = held
            # A sample is blank at once on the rank that cannot read a picture of it; the others are told.
            assert torch.equal(own, picture) or any(part.problem for part in parts)
        problems = [part.problem for part in parts if part.problem is not None]
        assert problems == ([] if whole.problem is None else [whole.problem])


def test_batches_have_the_slots_and_the_length_asked_for(
    make_loader: Callable[..., MicroBatchLoader], word_tokenizer: PreTrainedTokenizerFast
) -> None:
    loader = make_loader(last_step=1)
    (step,) = list(loader)
    batches = [to_batch(items, word_tokenizer, visual_tokens=3, length=20) for items in step]
    assert len(batches) == 2
    for batch in batches:
        assert batch.tokens.shape == batch.labels.shape == (2, 20)
        assert batch.pixels is not None and batch.pixels.shape == (2, 3, 8, 8)
        assert batch.tokens.tolist()[0].count(image_token_id(word_tokenizer)) == 3
        assert (batch.tokens[:, -1] == word_tokenizer.pad_token_id).all()


@pytest.mark.parametrize("workers", [0, 1])
def test_an_item_with_a_bad_picture_is_blank_and_says_why(
    make_loader: Callable[..., MicroBatchLoader], image_folder: Path, workers: int
) -> None:
    expected = [item for step in make_loader(last_step=2) for items in step for item in items]
    (image_folder / "3.png").write_text("not a picture")
    found = [item for step in make_loader(last_step=2, workers=workers) for items in step for item in items]
    for item, good in zip(found, expected, strict=True):
        assert item.encoded.token_ids == good.encoded.token_ids and item.pictures and good.pictures
        if item.sample_index != 3:
            assert item.problem is None and torch.equal(item.pictures[0], good.pictures[0])
            continue
        assert item.problem is not None and item.problem.startswith(str(image_folder / "3.png"))
        assert item.pictures[0].shape == good.pictures[0].shape and not item.pictures[0].any()
        assert set(item.encoded.labels) == {-100}


def test_a_lost_worker_is_named(make_loader: Callable[..., MicroBatchLoader]) -> None:
    class Deadly(ImageReader):
        def read(self, relative_path: str) -> torch.Tensor:
            os.kill(os.getpid(), signal.SIGKILL)
            raise AssertionError

    with pytest.raises(DataError, match=r"data\.workers: found 1, and one of these processes was lost"):
        list(make_loader(workers=1, reader=Deadly(load_image_processor(None, "siglip", 8), Path("/"))))


@pytest.mark.parametrize("workers", [0, 1])
def test_loading_leaves_the_default_random_numbers_alone(
    make_loader: Callable[..., MicroBatchLoader], workers: int
) -> None:
    before = torch.get_rng_state()
    list(make_loader(workers=workers))
    assert torch.equal(torch.get_rng_state(), before)


def test_what_goes_to_a_worker_can_be_pickled(make_loader: Callable[..., MicroBatchLoader]) -> None:
    # Where processes are spawned rather than forked, the data set travels.
    dataset: Any = make_loader()._loader.dataset
    copied = pickle.loads(pickle.dumps(dataset))
    assert copied[0][0].encoded == dataset[0][0].encoded


def test_a_batch_that_does_not_divide_is_refused_at_once(
    make_loader: Callable[..., MicroBatchLoader],
) -> None:
    with pytest.raises(ConfigError, match=r"batch\.global: found 4"):
        make_loader(micro=3)
