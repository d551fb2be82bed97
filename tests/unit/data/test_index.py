"""Shows that the index counts as the batches do, and that bad samples are found before training."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from megatron_sts.data import TEMPLATES, RawItem, Sample, SampleIndex, collate, encode, image_token_id, measure_samples
from megatron_sts.errors import DataError

MakeSample = Callable[..., Sample]
PLAIN, VICUNA = TEMPLATES["plain"], TEMPLATES["vicuna_v1"]


def test_counts_by_hand(word_tokenizer: PreTrainedTokenizerFast, make_sample: MakeSample, image_folder: Path) -> None:
    samples = [
        make_sample("<image>\nWhat digit is it?", "two five", images=("0.png",)),
        make_sample("Sure?", "yes"),
        make_sample("<image> <image>", "two", images=("0.png", "1.png")),
    ]
    calls: list[tuple[int, int]] = []
    index = measure_samples(
        samples,
        VICUNA,
        word_tokenizer,
        "",
        image_folder,
        lambda done, total: calls.append((done, total)),
    )
    # <s> USER: _ \nWhat digit is it? ASSISTANT: two five </s>; <s> USER: Sure? ASSISTANT: yes </s>;
    # <s> USER: _ \n ASSISTANT: two </s>
    assert index.text_tokens.tolist() == [11, 6, 7]
    assert index.images.tolist() == [1, 0, 2]
    assert index.supervised.tolist() == [3, 2, 2]
    assert len(index) == 3
    assert index.lacks_guide.tolist() == [0, 0, 1]
    assert index.image_positions.tolist() == [3, 3, 5]
    assert calls == [(3, 3)]
    assert all(array.dtype == np.int32 for array in (index.text_tokens, index.images, index.supervised))


def test_lengths_grow_with_the_visual_tokens() -> None:
    index = SampleIndex.from_rows([(5, 2, 1, 0, 1, 4), (6, 0, 1, 0)])
    assert index.lengths(1).tolist() == [7, 6]
    assert index.lengths(576).tolist() == [1157, 6]
    assert index.of([1, 0, 1]).lengths(576).tolist() == [6, 1157, 6]


def test_text_lies_around_the_images() -> None:
    # An image first, two neighbours in the middle, one at the end, none.
    rows = [(3, 1, 1, 0, 0), (4, 2, 1, 0, 2, 3), (2, 1, 1, 0, 2), (5, 0, 1, 0)]
    index = SampleIndex.from_rows(rows)
    expected = [((10, 13),), ((0, 2), (22, 24)), ((0, 2),), ((0, 5),)]
    assert index.text_ranges(10) == expected
    assert index.text_ranges(1) == [((1, 4),), ((0, 2), (4, 6)), ((0, 2),), ((0, 5),)]
    chosen = [2, 1, 1, 3, 0, 3]
    assert index.of(chosen).text_ranges(10) == [expected[number] for number in chosen]
    assert index.of([]).text_ranges(10) == []
    assert index.replaced({}).text_ranges(10) == expected
    changed = index.replaced({3: (6, 1, 2, 0, 3), 1: (4, 0, 1, 0)})
    assert changed.text_ranges(10) == [expected[0], ((0, 4),), expected[2], ((0, 3), (13, 16))]
    assert changed.supervised.tolist() == [1, 1, 1, 2]


def test_lengths_and_supervised_tokens_are_those_of_the_batch(
    tokenizer: PreTrainedTokenizerFast, make_sample: MakeSample, image_folder: Path
) -> None:
    sample = make_sample("<image>\nWhat digit?", "two", "<image> Sure?", "yes", images=("0.png", "1.png"))
    index = measure_samples([sample], VICUNA, tokenizer, None, image_folder)
    encoded = encode(sample, VICUNA, tokenizer)
    length = int(index.lengths(7)[0])
    batch = collate([RawItem(encoded, None)], 7, length, image_token_id(tokenizer), 0)
    is_text = np.zeros(length, dtype=bool)
    for start, end in index.text_ranges(7)[0]:
        is_text[start:end] = True
    assert is_text.tolist() == (batch.tokens[0] != image_token_id(tokenizer)).tolist()
    assert (batch.labels != -100).sum().item() == index.supervised[0]


def test_missing_images_are_listed_with_their_number(
    word_tokenizer: PreTrainedTokenizerFast, make_sample: MakeSample, image_folder: Path
) -> None:
    samples = [make_sample("<image>", "two", images=(f"{number}.png",), id=f"s{number}") for number in range(20)]
    with pytest.raises(DataError) as caught:
        measure_samples(samples, VICUNA, word_tokenizer, "", image_folder)
    message = str(caught.value)
    assert "12 of 20 samples name images that cannot be read: 's8' (8.png: no such file in" in message
    assert "'s17'" in message and "'s18'" not in message and "; and 2 more" in message
    assert "set data.images to the folder that holds them" in message


def test_images_outside_the_folder_or_without_a_folder_are_refused(
    word_tokenizer: PreTrainedTokenizerFast, make_sample: MakeSample, image_folder: Path
) -> None:
    (image_folder.parent / "out.png").touch()
    (image_folder / "link.png").symlink_to(image_folder.parent / "out.png")
    sample = make_sample("<image>", "two", images=("link.png",), id="a")
    with pytest.raises(DataError, match=r"'a' \(link\.png: outside"):
        measure_samples([sample], VICUNA, word_tokenizer, "", image_folder)
    with pytest.raises(DataError, match=r"'a' \(link\.png: data\.images is not set\)"):
        measure_samples([sample], VICUNA, word_tokenizer, "", None)


def test_text_needs_no_folder(word_tokenizer: PreTrainedTokenizerFast, make_sample: MakeSample) -> None:
    assert measure_samples([make_sample("Sure?", "yes")], PLAIN, word_tokenizer, None, None).images[0] == 0


def test_samples_without_a_supervised_token_are_listed(
    word_tokenizer: PreTrainedTokenizerFast, make_sample: MakeSample
) -> None:
    samples = [make_sample("Sure?", "yes"), make_sample("Sure?", id="mute")]
    with pytest.raises(DataError, match=r"1 of 2 samples hold no supervised token: 'mute'\. Remedy: .*remove"):
        measure_samples(samples, VICUNA, word_tokenizer, "", None)


def test_a_first_token_that_nothing_predicts_does_not_count_as_supervised(make_sample: MakeSample) -> None:
    # Without a begin-of-sequence token the answer's first token is the sequence's first.
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "two": 1, "five": 2}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    bare = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    assert measure_samples([make_sample("say", "two five")], PLAIN, bare, None, None).supervised.tolist() == [1]
    with pytest.raises(DataError, match="hold no supervised token"):
        measure_samples([make_sample("say", "two")], PLAIN, bare, None, None)
