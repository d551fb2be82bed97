"""Trains the quickstart's tokenizer: a sentencepiece unigram model, written as a Hugging Face fast tokenizer.

The training text has some fifty words, so every word, and with it each digit's name, is one token. No space
is put before the first word: a text is tokenized the same at the start of a string, after `</s>` and after
`<image>`, the ids of a prompt are a prefix of the ids of prompt and answer, and decoding gives back every
character.

    <unk> 0, <s> 1, </s> 2, <pad> 3, <image> 4, then newline, words, letters, unused entries up to the size;
    `<s>` opens every string, as in Llama's tokenizer
"""

import argparse
import collections
import io
import json
import re
import string
import tempfile
from collections.abc import Sequence
from pathlib import Path

import sentencepiece
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from megatron_sts.errors import DataError

SPACE = "▁"
UNKNOWN, BEGIN, END, PADDING, IMAGE = "<unk>", "<s>", "</s>", "<pad>", "<image>"
CAPTION_FILE = "align.json"
TEXT_FILES = ("pretrain.json", CAPTION_FILE, "tune.json")
# What a person may ask beyond the training text: every letter is a token of its own.
REQUIRED_CHARACTERS = string.ascii_letters + ".,:?!'"
MAXIMUM_LENGTH = 2048


def training_texts(data: Path) -> list[str]:
    """Every exchange below `data` in the forms that conversation templates give it, without special tokens.

    Those forms are `USER: question ASSISTANT: answer` and, for the alignment captions, the answer alone.
    """
    texts = []
    for name in TEXT_FILES:
        if not (data / name).is_file():
            raise DataError(f"{data / name}: not found. Make the data set first: compose_digits.py --output {data}")
        for record in json.loads((data / name).read_text(encoding="utf-8")):
            values = [turn["value"].replace(IMAGE, "") for turn in record["conversations"]]
            for human, answer in zip(values[::2], values[1::2], strict=True):
                texts.append(f"USER: {human} ASSISTANT: {answer}")
                if name == CAPTION_FILE:
                    texts.append(answer)
    return texts


def train_pieces(texts: Sequence[str], vocabulary_size: int) -> list[tuple[str, float]]:
    """`vocabulary_size` pieces of a unigram model with their log probabilities, in order of their ids."""
    words = collections.Counter(word for text in texts for word in re.findall(r" ?[A-Za-z]+", text))
    model = io.BytesIO()
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".tsv") as seeds:
        # Left alone, sentencepiece proposes substrings that several words share: hardly ever a whole word.
        seeds.writelines(f"{word.replace(' ', SPACE)}\t{count}\n" for word, count in sorted(words.items()))
        seeds.flush()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            model_type="unigram",
            seed_sentencepieces_file=seeds.name,
            vocab_size=vocabulary_size,
            hard_vocab_limit=False,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            required_chars=REQUIRED_CHARACTERS,
            unk_piece=UNKNOWN,
            bos_piece=BEGIN,
            eos_piece=END,
            pad_id=3,
            pad_piece=PADDING,
            user_defined_symbols=[IMAGE, "\n"],
            num_threads=1,
            minloglevel=2,
        )
    trained = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    pieces = [(trained.id_to_piece(number), trained.get_score(number)) for number in range(len(trained))]
    # One size whatever the text: the architecture file states it, and a small data set may lack a word.
    unlikely = min(score for _, score in pieces) - 10
    return pieces + [(f"<unused{number}>", unlikely) for number in range(len(pieces), vocabulary_size)]


def build_tokenizer(pieces: list[tuple[str, float]]) -> PreTrainedTokenizerFast:
    """The fast tokenizer of those pieces, with the `image_token` that transformers' LlavaProcessor reads."""
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=True)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="never", split=True)
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in (UNKNOWN, BEGIN, END, PADDING, IMAGE)])
    begin = (BEGIN, tokenizer.token_to_id(BEGIN))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", pair=f"{BEGIN} $A {BEGIN} $B", special_tokens=[begin]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=UNKNOWN,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PADDING,
        extra_special_tokens={"image_token": IMAGE},
        model_max_length=MAXIMUM_LENGTH,
        clean_up_tokenization_spaces=False,
    )


def write_tokenizer(data: Path, output: Path, vocabulary_size: int) -> PreTrainedTokenizerFast:
    """Trains a tokenizer on the training text of `data` and writes it to `output`."""
    tokenizer = build_tokenizer(train_pieces(training_texts(data), vocabulary_size))
    tokenizer.save_pretrained(output)
    return tokenizer


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train the quickstart's tokenizer on its training text.")
    parser.add_argument("--data", type=Path, required=True, help="directory written by compose_digits.py")
    parser.add_argument("--output", type=Path, required=True, help="Hugging Face directory to write")
    parser.add_argument("--vocabulary-size", type=int, default=128, help="tokens (default: %(default)s)")
    options = parser.parse_args(arguments)
    tokenizer = write_tokenizer(options.data, options.output, options.vocabulary_size)
    print(f"tokenizer: {len(tokenizer)} tokens: {options.output}")


if __name__ == "__main__":
    main()
