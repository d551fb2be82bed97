"""Shows which tokens carry a loss, by masks written by hand, and that a prompt is a prefix of its sample."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from megatron_sts.data import (
    TEMPLATES,
    Encoded,
    RawItem,
    Sample,
    Template,
    Turn,
    collate,
    encode,
    encode_guide,
    image_token_id,
    lacks_guide,
    pad_token_id,
)
from megatron_sts.errors import DataError

MakeSample = Callable[..., Sample]
PLAIN, VICUNA = TEMPLATES["plain"], TEMPLATES["vicuna_v1"]


def marked(encoded: Encoded, tokenizer: PreTrainedTokenizerFast) -> list[tuple[str, bool]]:
    """Each token with whether it is supervised; a supervised label must be the token itself."""
    pairs = zip(encoded.token_ids, encoded.labels, strict=True)
    assert all(label in (-100, token) for token, label in pairs)
    tokens = tokenizer.convert_ids_to_tokens(encoded.token_ids)
    return [(token, label != -100) for token, label in zip(tokens, encoded.labels, strict=True)]


def test_vicuna_mask_by_hand(word_tokenizer: PreTrainedTokenizerFast, make_sample: MakeSample) -> None:
    sample = make_sample("<image>\nWhat digit is it?", "two five", "Sure?", "yes", images=("a.png",))
    assert marked(encode(sample, VICUNA, word_tokenizer, ""), word_tokenizer) == [
        ("<s>", False),
        ("▁USER:", False),
        ("▁", False),
        ("<image>", False),
        ("▁\nWhat", False),
        ("▁digit", False),
        ("▁is", False),
        ("▁it?", False),
        ("▁ASSISTANT:", False),
        ("▁two", True),
        ("▁five", True),
        ("</s>", True),
        ("▁USER:", False),
        ("▁Sure?", False),
        ("▁ASSISTANT:", False),
        ("▁yes", True),
        ("</s>", True),
    ]


def test_plain_mask_by_hand(word_tokenizer: PreTrainedTokenizerFast, make_sample: MakeSample) -> None:
    sample = make_sample("<image>\nDescribe.", "Row one: two five.", images=("a.png",))
    assert marked(encode(sample, PLAIN, word_tokenizer), word_tokenizer) == [
        ("<s>", False),
        ("<image>", False),
        ("▁Row", True),
        ("▁one:", True),
        ("▁two", True),
        ("▁five.\n", True),
    ]


def test_supervised_text_is_the_answers_whatever_the_tokenizer(
    tokenizer: PreTrainedTokenizerFast, make_sample: MakeSample
) -> None:
    sample = make_sample("What digit is it?", "two five", "Sure?", "yes")
    encoded = encode(sample, VICUNA, tokenizer, "")
    learnt = [label for label in encoded.labels if label != -100]
    text = "".join(tokenizer.convert_ids_to_tokens(learnt)).replace("Ġ", "▁")
    assert text == "▁two▁five</s>▁yes</s>"


@pytest.mark.parametrize("name", ["byte_tokenizer", "llama_tokenizer"])
def test_characters_of_several_tokens_are_supervised_whole(
    name: str, request: pytest.FixtureRequest, make_sample: MakeSample
) -> None:
    tokenizer: PreTrainedTokenizerFast = request.getfixturevalue(name)
    encoded = encode(make_sample("é 😀", "é 😀"), VICUNA, tokenizer, "")
    learnt = [label for label in encoded.labels if label != -100]
    # A space, two bytes, a space, four bytes and the end.
    assert len(learnt) == 9
    tokens = tokenizer.convert_ids_to_tokens(learnt)
    if name == "byte_tokenizer":
        assert tokens == ["Ġ", "Ã", "©", "Ġ", "ð", "Ł", "ĺ", "Ģ", "</s>"]
    else:
        assert tokens == ["▁", "<0xC3>", "<0xA9>", "▁", "<0xF0>", "<0x9F>", "<0x98>", "<0x80>", "</s>"]


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_a_prompt_alone_is_tokenized_as_the_start_of_the_conversation(
    template: Template, tokenizer: PreTrainedTokenizerFast, make_sample: MakeSample
) -> None:
    if template.stop != "</s>" and template.name != "plain" and tokenizer.backend_tokenizer.get_vocab_size() < 100:
        pytest.skip("one token a word: it does not split at the line break before an answer")
    sample = make_sample("<image>\nWhat digit is it?", "two", "Sure?", "yes", images=("a.png",))
    encoded = encode(sample, template, tokenizer)
    prompt = tokenizer(template.prompt(sample.turns[0].text))["input_ids"]
    assert encoded.token_ids[: len(prompt)] == prompt
    assert set(encoded.labels[: len(prompt)]) == {-100}
    assert encoded.labels[len(prompt)] == encoded.token_ids[len(prompt)]


def test_one_image_token_for_each_image(tokenizer: PreTrainedTokenizerFast, make_sample: MakeSample) -> None:
    sample = make_sample("<image> <image>", "two", "And <image>?", "five", images=("a", "b", "c"))
    encoded = encode(sample, VICUNA, tokenizer)
    assert encoded.token_ids.count(image_token_id(tokenizer)) == 3


def test_a_count_of_images_that_differs_is_refused(
    word_tokenizer: PreTrainedTokenizerFast, make_sample: MakeSample
) -> None:
    with pytest.raises(DataError, match="sample 'x': found 1 <image> in the human turns for 2 images"):
        encode(make_sample("<image>", "two", images=("a", "b"), id="x"), VICUNA, word_tokenizer)


def test_a_tokenizer_without_image_token_is_refused_for_images_only(make_sample: MakeSample) -> None:
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "two": 1, "<image>": 2}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    bare = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    # An ordinary entry of the vocabulary will not do: the text around it decides whether it is found.
    with pytest.raises(DataError, match=r"no special token <image>; .*add it with tokenizer\.add_tokens"):
        image_token_id(bare)
    with pytest.raises(DataError, match="no special token <image>"):
        encode(make_sample("<image>", "two", images=("a",)), PLAIN, bare)
    assert encode(make_sample("say", "two"), PLAIN, bare) == Encoded([1], [1])


def test_the_remedy_for_a_missing_image_token_works(make_sample: MakeSample) -> None:
    backend = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    bare = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    bare.add_tokens(["<image>"], special_tokens=True)
    assert image_token_id(bare) == 1


def test_a_template_whose_tokens_the_tokenizer_lacks_is_refused(make_sample: MakeSample) -> None:
    backend = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    other = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="<|end|>")
    with pytest.raises(DataError, match=r"has no token '</s>', which the template 'vicuna_v1' writes"):
        encode(make_sample("a", "b"), VICUNA, other)


def test_a_tokenizer_that_joins_prompt_and_answer_is_refused(make_sample: MakeSample) -> None:
    # Without a pre-tokenizer the whole text up to `</s>` is one word.
    backend = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    joining = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>")
    with pytest.raises(DataError, match=r"one token of 'USER: a ASSISTANT: b'.*splits between the two"):
        encode(make_sample("a", "b"), VICUNA, joining, "")


def test_a_token_that_starts_in_an_answer_and_ends_behind_it_is_not_learnt(make_sample: MakeSample) -> None:
    # This `<image>` takes the newline before it along.
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "two": 1}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    greedy = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    greedy.add_tokens([AddedToken("<image>", lstrip=True, special=True)], special_tokens=True)
    sample = make_sample("<image>", "two", "<image>", "two", images=("a", "b"))
    assert encode(sample, PLAIN, greedy) == Encoded([2, 1, 2, 1], [-100, 1, -100, 1])


def test_padding_falls_back_to_the_end_of_sequence_token(word_tokenizer: PreTrainedTokenizerFast) -> None:
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1}, unk_token="<unk>"))
    assert pad_token_id(word_tokenizer) == word_tokenizer.pad_token_id
    assert pad_token_id(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")) == 1
    assert pad_token_id(PreTrainedTokenizerFast(tokenizer_object=backend)) == 0


def test_the_guide_is_the_human_turns_alone_also_where_the_template_drops_them(
    word_tokenizer: PreTrainedTokenizerFast,
) -> None:
    turns = (("<image>\ndescribe it", "red"), ("is it <image> dark", "blue"))
    samples = [
        Sample("s", tuple(turn for q, a in turns for turn in (Turn("human", q), Turn("assistant", a + more))), ())
        for more in ("", " and green")
    ]
    guides = [encode_guide(sample, word_tokenizer) for sample in samples]
    # Changed answers change nothing.
    assert guides[0] == guides[1]
    assert guides[0] == word_tokenizer("describe it\nis it   dark", add_special_tokens=False)["input_ids"]
    assert encode_guide(Sample("s", (Turn("human", "<image>"), Turn("assistant", "red")), ()), word_tokenizer) == []


@pytest.mark.parametrize(
    ("human", "images", "lacks"),
    [("<image>\n", ("a.png",), True), ("<image>\ndescribe it", ("a.png",), False), ("", (), False)],
)
def test_only_a_picture_without_a_word_lacks_a_guide(human: str, images: tuple[str, ...], lacks: bool) -> None:
    sample = Sample("s", (Turn("human", human), Turn("assistant", "red")), images)
    assert lacks_guide(sample) == lacks


def weighted(sample: Sample, *weights: float) -> Sample:
    """The sample with these weights of its answers."""
    turns = list(sample.turns)
    turns[1::2] = [replace(turn, weight=weight) for turn, weight in zip(turns[1::2], weights, strict=True)]
    return replace(sample, turns=tuple(turns))


@pytest.mark.parametrize("name", [name for name in TEMPLATES if name != "plain"])
def test_every_token_of_an_answer_and_its_end_weighs_what_the_answer_does(
    name: str, byte_tokenizer: PreTrainedTokenizerFast, make_sample: MakeSample
) -> None:
    sample = make_sample("Sure?", "yes no", "Sure?", "two", "Sure?", "five")
    whole = encode(sample, TEMPLATES[name], byte_tokenizer)
    assert whole.weights is None
    found = encode(weighted(sample, 0.5, 0, 3), TEMPLATES[name], byte_tokenizer)
    assert found.token_ids == whole.token_ids and found.weights is not None
    learnt = [label != -100 for label in whole.labels]
    # Numbers of the answers that the supervised tokens belong to: a new one begins where the token before has no loss.
    starts = np.diff(np.array([False, *learnt]).astype(int)) > 0
    expected = np.array([0, 0.5, 0, 3])[np.cumsum(starts)] * learnt
    assert found.weights == expected.tolist() and 0.5 in found.weights and 3 in found.weights
    assert [label != -100 for label in found.labels] == (expected > 0).tolist()
    # Without a turn in part, zeros alone need no weights; what is cut off has none.
    assert encode(weighted(sample, 1, 0, 1), TEMPLATES[name], byte_tokenizer).weights is None
    cut = encode(replace(weighted(sample, 0.5, 0, 3), token_limit=20), TEMPLATES[name], byte_tokenizer)
    assert cut.weights == found.weights[:20]


def test_plain_captions_weigh_what_they_say(word_tokenizer: PreTrainedTokenizerFast, make_sample: MakeSample) -> None:
    sample = make_sample("<image>\nDescribe.", "Row one: two five.", images=("a.png",))
    assert encode(weighted(sample, 0.25), PLAIN, word_tokenizer).weights == [0, 0, 0.25, 0.25, 0.25, 0.25]


def test_where_padding_is_the_end_of_an_answer_its_true_ends_alone_are_learnt(make_sample: MakeSample) -> None:
    """As of Phi's tokenizer: one token begins, ends, stands for what is unknown, and pads."""
    end, words = "<|endoftext|>", ["USER:", "ASSISTANT:", "digit?", "two", "Sure?", "yes"]
    core = Tokenizer(models.WordLevel({word: number for number, word in enumerate([end, *words])}, unk_token=end))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token=end, eos_token=end, unk_token=end)
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    sample = make_sample("digit?", "two", "Sure?", "yes")
    encoded = encode(sample, TEMPLATES["mipha_phi"], tokenizer, "")
    pad = pad_token_id(tokenizer)
    assert pad == tokenizer.eos_token_id == 0
    batch = collate([RawItem(encoded, None)], 1, 13, image_token_id(tokenizer), pad)
    assert batch.tokens.tolist() == [[1, 3, 2, 4, 0, 1, 5, 2, 6, 0, 0, 0, 0]]
    # Shifted: the two ends that follow an answer, and no padding behind the last.
    assert batch.labels.tolist() == [[-100, -100, 4, 0, -100, -100, -100, 6, 0, -100, -100, -100, -100]]
