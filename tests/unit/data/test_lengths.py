"""Shows what becomes of samples that are too long, with lengths counted by hand."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from megatron_sts.data import TEMPLATES, Encoded, Fitted, Sample, encode, fit_lengths, image_token_id, measure_samples
from megatron_sts.data.lengths import TooLong, token_limit
from megatron_sts.errors import DataError

MakeSample = Callable[..., Sample]
VICUNA = TEMPLATES["vicuna_v1"]
IMAGE = 9


@pytest.fixture
def fit(
    word_tokenizer: PreTrainedTokenizerFast, make_sample: MakeSample, image_folder: Path
) -> Callable[[int, TooLong], Fitted]:
    # <s> USER: _ <image> \nWhat digit is it? ASSISTANT: two five </s> USER: Sure? ASSISTANT: yes </s>;
    # with four tokens an image 20, and 15 up to the first </s>. The last sample has 6.
    samples = [
        make_sample("<image>\nWhat digit is it?", "two five", "Sure?", "yes", images=("0.png",), id="long"),
        make_sample("Sure?", "yes", "Sure?", "yes", "Sure? <image>", "no", images=("0.png",), id="late"),
        make_sample("Sure?", "yes", id="short"),
    ]
    index, _ = measure_samples(samples, VICUNA, word_tokenizer, "", image_folder)
    assert index.lengths(4).tolist() == [20, 21, 6]

    def fitted(max_tokens: int, too_long: TooLong, among: np.ndarray | None = None) -> Fitted:
        return fit_lengths(index, samples, VICUNA, word_tokenizer, "", 4, max_tokens, too_long, among)

    return fitted


def test_samples_that_fit_are_left_as_they_are(fit: Callable[[int, TooLong], Fitted]) -> None:
    for too_long in ("error", "cut", "set_aside", "drop_turns"):
        fitted = fit(21, too_long)
        assert [sample.id for sample in fitted.samples] == ["long", "late", "short"]
        assert (fitted.samples.limits, fitted.samples.turns, fitted.set_aside) == ({}, {}, ())


def test_error_lists_samples_and_the_length_that_would_do(fit: Callable[[int, TooLong], Fitted]) -> None:
    with pytest.raises(DataError) as caught:
        fit(15, "error")
    message = str(caught.value)
    assert "2 of 3 records are longer than data.max_tokens 15: 'long' (20 tokens); 'late' (21 tokens)" in message
    assert "raise data.max_tokens to 21" in message and "set data.too_long to drop_turns, cut or set_aside" in message


def test_set_aside_leaves_long_samples_out(fit: Callable[[int, TooLong], Fitted]) -> None:
    fitted = fit(15, "set_aside")
    assert [sample.id for sample in fitted.samples] == ["short"]
    assert fitted.index.lengths(4).tolist() == [6]
    assert fitted.set_aside == (0, 1)


def test_cut_ends_a_sample_and_leaves_out_what_would_lose_an_image(
    fit: Callable[[int, TooLong], Fitted], word_tokenizer: PreTrainedTokenizerFast
) -> None:
    fitted = fit(14, "cut")
    assert [sample.id for sample in fitted.samples] == ["long", "short"]
    assert (fitted.samples.limits, fitted.set_aside) == ({0: 11}, (1,))
    # Cut before the first </s>: "two" and "five" are learnt.
    assert fitted.index.lengths(4).tolist() == [14, 6]
    assert fitted.index.supervised.tolist() == [2, 2]
    whole = encode(fit(21, "cut").samples[0], VICUNA, word_tokenizer, "")
    encoded = encode(fitted.samples[0], VICUNA, word_tokenizer, "")
    assert encoded.token_ids == whole.token_ids[:11] and encoded.labels == whole.labels[:11]
    assert encoded.token_ids.count(image_token_id(word_tokenizer)) == 1
    assert encode(fitted.samples[1], VICUNA, word_tokenizer, "").token_ids[-1] == word_tokenizer.eos_token_id


def test_drop_turns_takes_the_last_turns_with_their_images_until_the_rest_fits(
    fit: Callable[[int, TooLong], Fitted], word_tokenizer: PreTrainedTokenizerFast
) -> None:
    # "late" has 6 tokens, then 5 with "Sure?", then 10 with an image.
    for max_tokens, turns in ((20, 4), (11, 4), (10, 2), (6, 2)):
        fitted = fit(max_tokens, "drop_turns")
        late = next(sample for sample in fitted.samples if sample.id == "late")
        assert (fitted.samples.turns[1], len(late.turns), late.images) == (turns, turns, ())
        place = list(fitted.samples.numbers).index(1)
        encoded = encode(late, VICUNA, word_tokenizer, "")
        assert fitted.index.lengths(4)[place] == len(encoded.token_ids) == {4: 11, 2: 6}[turns]
        assert fitted.index.supervised[place] == turns and encoded.token_ids[-1] == word_tokenizer.eos_token_id
    # Of the first only the first question and its answer remain, with the image whole; one token less sets it aside.
    assert fit(15, "drop_turns").index.lengths(4).tolist() == [15, 11, 6]
    fitted = fit(14, "drop_turns")
    assert (fitted.set_aside, dict(fitted.samples.turns)) == ((0,), {1: 4})
    assert fit(5, "drop_turns").set_aside == (0, 1, 2)


def test_what_would_be_left_without_loss_is_set_aside(
    word_tokenizer: PreTrainedTokenizerFast, make_sample: MakeSample
) -> None:
    sample = make_sample("Sure?", "yes", "Sure?", "two")
    sample = replace(sample, turns=(sample.turns[0], replace(sample.turns[1], weight=0.0), *sample.turns[2:]))
    index, _ = measure_samples([sample], VICUNA, word_tokenizer, "", None)
    fitted = fit_lengths(index, [sample], VICUNA, word_tokenizer, "", 4, 6, "drop_turns")
    assert fitted.set_aside == (0,) and index.supervised.tolist() == [2]


def test_only_those_that_count_are_fitted(fit: Callable[..., Fitted]) -> None:
    fitted = fit(14, "set_aside", np.array([2]))
    assert [sample.id for sample in fitted.samples] == ["short"] and fitted.set_aside == ()


def test_fitted_samples_are_a_sequence(fit: Callable[[int, TooLong], Fitted]) -> None:
    samples = fit(14, "cut").samples
    assert len(samples) == 2 and samples[-1].id == "short"
    assert [sample.token_limit for sample in samples[:2]] == [11, None]
    assert [sample.id for sample in samples] == ["long", "short"]
    with pytest.raises(IndexError):
        samples[2]


@pytest.mark.parametrize(
    ("tokens", "labels", "max_tokens", "expected"),
    [
        # An image is 4: ends are 1, 5, 6, 7, 8.
        ([1, IMAGE, 2, 3, 4], [-100, -100, -100, 3, 4], 8, 5),
        ([1, IMAGE, 2, 3, 4], [-100, -100, -100, 3, 4], 7, 4),
        # No answer is left, or half an image would be.
        ([1, IMAGE, 2, 3, 4], [-100, -100, -100, 3, 4], 6, None),
        ([1, IMAGE, 2, 3, 4], [-100, 2, 2, 3, 4], 4, None),
        ([1, 2, IMAGE, 3], [-100, 2, -100, 3], 5, None),
        # A first token that nothing predicts is not learnt.
        ([1, 2, 3], [1, -100, 3], 2, None),
    ],
)
def test_the_limit_keeps_images_whole_and_something_to_learn(
    tokens: list[int], labels: list[int], max_tokens: int, expected: int | None
) -> None:
    assert token_limit(Encoded(tokens, labels), IMAGE, 4, max_tokens) == expected


def test_fitting_does_not_change_the_index_it_is_given(
    word_tokenizer: PreTrainedTokenizerFast, make_sample: MakeSample
) -> None:
    samples = [make_sample("Sure?", "yes no two")]
    index, _ = measure_samples(samples, VICUNA, word_tokenizer, "", None)
    before = index.text_tokens.copy()
    assert fit_lengths(index, samples, VICUNA, word_tokenizer, "", 4, 6, "cut").index.text_tokens.tolist() == [6]
    assert np.array_equal(index.text_tokens, before)
