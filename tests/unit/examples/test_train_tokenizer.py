"""Shows that the quickstart's tokenizer keeps words whole, text intact, a prompt a prefix of its answer."""

import re
import sys
from pathlib import Path

import pytest
from PIL import Image
from transformers import AutoTokenizer, LlavaProcessor, PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).parents[3] / "examples" / "quickstart"))
import compose_digits
import train_tokenizer
import train_tower

from megatron_sts.errors import DataError

PROMPTS = (
    "USER: <image>\nWhich digit is in row one, column two? ASSISTANT:",
    "USER: <image>\nIs there an eight? ASSISTANT: yes</s>USER: How many sixes are there? ASSISTANT:",
    "<image>",
    "A chat.  USER: <image>\nDescribe the image. ASSISTANT:",
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("digits")
    compose_digits.write_dataset(output, {"train": 200, "validation": 1, "test": 1}, questions=6, seed=7)
    return output


@pytest.fixture(scope="module")
def tokenizer(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    output = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer.write_tokenizer(dataset, output, vocabulary_size=128)
    loaded = AutoTokenizer.from_pretrained(output)
    assert isinstance(loaded, PreTrainedTokenizerFast)
    return loaded


def test_loads_as_a_fast_tokenizer_with_its_special_tokens(tokenizer: PreTrainedTokenizerFast):
    assert tokenizer.is_fast
    special = {"<unk>": 0, "<s>": 1, "</s>": 2, "<pad>": 3, "<image>": 4}
    assert {token: tokenizer.convert_tokens_to_ids(token) for token in special} == special
    assert (tokenizer.unk_token_id, tokenizer.bos_token_id) == (0, 1)
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (2, 3)
    assert (tokenizer.image_token, tokenizer.image_token_id) == ("<image>", 4)
    assert tokenizer("Row one").input_ids[0] == tokenizer.bos_token_id


def test_vocabulary_has_the_size_asked_for(tokenizer: PreTrainedTokenizerFast):
    assert len(tokenizer) == 128
    assert sorted(tokenizer.get_vocab().values()) == list(range(128))
    small = train_tokenizer.build_tokenizer(train_tokenizer.train_pieces(["USER: one ASSISTANT: two"], 96))
    assert len(small) == 96


def test_every_word_of_the_training_text_is_one_token(dataset: Path, tokenizer: PreTrainedTokenizerFast):
    words = {word for text in train_tokenizer.training_texts(dataset) for word in re.findall(r" ?\w+", text)}
    words |= {f" {number}" for number in compose_digits.NUMBER_WORDS}
    assert [word for word in words if len(tokenizer(word, add_special_tokens=False).input_ids) != 1] == []


def test_decoding_gives_back_every_text(dataset: Path, tokenizer: PreTrainedTokenizerFast):
    texts = train_tokenizer.training_texts(dataset)
    texts += [f"{prompt} five</s>" for prompt in PROMPTS]
    texts += ["<image>Row one: five zero.\n", " two  spaces ", "Quiz!"]
    ids = tokenizer(texts, add_special_tokens=False).input_ids
    assert tokenizer.batch_decode(ids) == texts
    assert all(tokenizer.unk_token_id not in row for row in ids)


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("answer", [" five</s>", " five zero</s>", "Row one: five.\n", " yes</s>USER: Is"])
def test_prompt_is_a_prefix_of_prompt_and_answer(tokenizer: PreTrainedTokenizerFast, prompt: str, answer: str):
    answer_ids = tokenizer(answer, add_special_tokens=False).input_ids
    assert tokenizer(prompt + answer).input_ids == tokenizer(prompt).input_ids + answer_ids


def test_a_digit_is_the_same_token_in_captions_and_in_answers(tokenizer: PreTrainedTokenizerFast):
    caption = tokenizer("<image>Row one: five zero.").input_ids
    answer = tokenizer("USER: Which digit? ASSISTANT: zero</s>").input_ids
    assert caption[-2] == answer[-2]


def test_llava_processor_expands_the_image_token(tokenizer: PreTrainedTokenizerFast):
    processor = LlavaProcessor(
        train_tower.image_processor(), tokenizer, patch_size=14, vision_feature_select_strategy="full"
    )
    inputs = processor(images=Image.new("RGB", (84, 84)), text=PROMPTS[0], return_tensors="pt")
    assert (inputs["input_ids"] == tokenizer.image_token_id).sum() == 36
    assert inputs["pixel_values"].shape == (1, 3, 84, 84)


def test_missing_data_set_is_named_with_the_remedy(tmp_path: Path):
    with pytest.raises(DataError, match=r"pretrain\.json: not found\. Make the data set first"):
        train_tokenizer.training_texts(tmp_path)
