"""Tokenizers, conversations and pictures made on the spot."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from megatron_sts.data import Sample, Turn
from megatron_sts.data.sample import Role

CORPUS = [
    "A chat between a curious user and an artificial intelligence assistant.",
    "USER: What digit is it?  ASSISTANT: two five yes no",
    "\nWhat digit is it? Sure? Row one: two five.\n",
]


CHAT_TOKENS = [
    *("<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    *("<|endoftext|>", "<eos>"),
]


def _finished(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens=["<image>", *CHAT_TOKENS],
    )
    fast.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", fast.bos_token_id)]
    )
    return fast


@pytest.fixture(scope="session")
def word_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, `▁` for a space, as sentencepiece writes it; a begin-of-sequence token in front."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.train_from_iterator(CORPUS, trainers.WordLevelTrainer(special_tokens=["<unk>", "<s>", "</s>", "<pad>"]))
    return _finished(tokenizer)


@pytest.fixture(scope="session")
def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level byte-pair encoding: tokens may be parts of a character, offsets leave spaces out."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<unk>", "<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return _finished(tokenizer)


@pytest.fixture(scope="session")
def llama_tokenizer() -> PreTrainedTokenizerFast:
    """Built as Llama's: no pre-tokenizer, a normalizer that writes `▁`, bytes to fall back on."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=380, special_tokens=["<unk>", "<s>", "</s>", "<pad>", *bytes_])
    tokenizer.train_from_iterator(CORPUS, trainer)
    state = json.loads(tokenizer.to_str())
    state["pre_tokenizer"] = None
    # The bytes are ordinary entries of the vocabulary: they are never looked for in a text.
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] not in bytes_]
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return _finished(tokenizer)


@pytest.fixture(params=["word_tokenizer", "byte_tokenizer", "llama_tokenizer"])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    """Each kind in turn."""
    tokenizer: PreTrainedTokenizerFast = request.getfixturevalue(request.param)
    return tokenizer


@pytest.fixture
def chat_tokens() -> list[str]:
    """The special tokens of ChatML and of Llama 3."""
    return CHAT_TOKENS


@pytest.fixture
def make_sample() -> Callable[..., Sample]:
    """Makes a conversation of alternating texts, human first."""

    def make(*texts: str, images: tuple[str, ...] = (), id: str = "sample") -> Sample:
        roles: tuple[Role, Role] = ("human", "assistant")
        return Sample(id, tuple(Turn(roles[i % 2], text) for i, text in enumerate(texts)), images)

    return make


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """A folder with 0.png ... 7.png, 8 x 8 pixels, each of one colour."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(8):
        Image.new("RGB", (8, 8), (30 * number, 0, 255)).save(folder / f"{number}.png")
    return folder
