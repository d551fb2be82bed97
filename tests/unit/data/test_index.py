"""Shows that the index counts as the batches do, and that bad samples are named."""

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
    index, problems = measure_samples(
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
    assert len(index) == 3 and not problems
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
    index, _ = measure_samples([sample], VICUNA, tokenizer, None, image_folder)
    encoded = encode(sample, VICUNA, tokenizer)
    length = int(index.lengths(7)[0])
    batch = collate([RawItem(encoded, None)], 7, length, image_token_id(tokenizer), 0)
    is_text = np.zeros(length, dtype=bool)
    for start, end in index.text_ranges(7)[0]:
        is_text[start:end] = True
    assert is_text.tolist() == (batch.tokens[0] != image_token_id(tokenizer)).tolist()
    assert (batch.labels != -100).sum().item() == index.supervised[0]


def test_bad_samples_are_told_by_their_place_and_do_not_count(
    word_tokenizer: PreTrainedTokenizerFast, make_sample: MakeSample, image_folder: Path
) -> None:
    (image_folder.parent / "out.png").touch()
    (image_folder / "link.png").symlink_to(image_folder.parent / "out.png")
    samples = [make_sample("<image>", "two", images=(name,)) for name in ("0.png", "none.png", "link.png")] + [
        make_sample("<image>", "two", images=("0.png", "1.png"), id="a")
    ]
    index, problems = measure_samples(samples, VICUNA, word_tokenizer, "", image_folder)
    assert list(problems) == [1, 2, 3] and index.text_tokens.tolist() == [6, 0, 0, 0]
    assert problems[1].startswith("image none.png: no such file in ") and problems[2].startswith(
        "image link.png: outside "
    )
    assert "sample 'a': found 1 <image> in the human turns for 2 images" in problems[3]
    _, problems = measure_samples(samples[:1], VICUNA, word_tokenizer, "", None)
    assert problems == {0: "image 0.png: data.images is not set"}


def test_text_needs_no_folder(word_tokenizer: PreTrainedTokenizerFast, make_sample: MakeSample) -> None:
    index, problems = measure_samples([make_sample("Sure?", "yes")], PLAIN, word_tokenizer, None, None)
    assert index.images[0] == 0 and not problems


def test_a_template_that_is_not_the_tokenizers_is_refused_at_once(make_sample: MakeSample) -> None:
    bare = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, "a")), unk_token="a")
    with pytest.raises(DataError, match=r"has no token '</s>'"):
        measure_samples([make_sample("Sure?", "yes")], VICUNA, bare, None, None)


def test_a_first_token_that_nothing_predicts_does_not_count_as_supervised(make_sample: MakeSample) -> None:
    # Without a begin-of-sequence token the answer's first token is the sequence's first.
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "two": 1, "five": 2}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    bare = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", extra_special_tokens=["<image>"])
    samples = [make_sample("say", "two five"), make_sample("say", "two")]
    assert measure_samples(samples, PLAIN, bare, None, None)[0].supervised.tolist() == [1, 0]
