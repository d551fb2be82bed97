"""Shows which tokens of each template carry a loss: by hand, and as Hugging Face's own assistant mask has it."""

from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from megatron_sts.data import TEMPLATES, Sample, encode

MakeSample = Callable[..., Sample]

# As the authors of each format write it, with the answers marked. Not made from ours.
MARKED = {
    "plain": "{% for m in messages %}{% if m.role == 'user' %}<image>{% else %}"
    "{% generation %}{{ m.content }}\n{% endgeneration %}{% endif %}{% endfor %}",
    "vicuna_v1": "Be brief. {% for m in messages %}{% if m.role == 'user' %}USER: {{ m.content }} {% else %}"
    "ASSISTANT: {% generation %}{{ m.content }}</s>{% endgeneration %}{% endif %}{% endfor %}",
    "chatml": "<|im_start|>system\nBe brief.<|im_end|>\n{% for m in messages %}{% if m.role == 'user' %}"
    "<|im_start|>user\n{{ m.content }}<|im_end|>\n{% else %}"
    "<|im_start|>assistant\n{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{{ '\n' }}{% endif %}"
    "{% endfor %}",
    "llama3": "<|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>{% for m in messages %}"
    "{% if m.role == 'user' %}<|start_header_id|>user<|end_header_id|>\n\n{{ m.content }}<|eot_id|>{% else %}"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
    "{% generation %}{{ m.content }}<|eot_id|>{% endgeneration %}{% endif %}{% endfor %}",
}
# Vicuna's with another end of an answer (conv_phi_v0 and conv_gemma_2 of Mipha).
ENDS = {"mipha_phi": "<|endoftext|>", "mipha_gemma": "<eos>"}
MARKED |= {name: MARKED["vicuna_v1"].replace("</s>", end) for name, end in ENDS.items()}
# No token of it joins spaces and letters, so that a mask by hand can be read.
PIECES = ["\n", "\n\n", "USER:", "ASSISTANT:", "user", "assistant", "system", "Be", "brief.", "What?", "two", "five"]
BY_HAND = {
    "plain": "<image> [two] [five] [\n]",
    "vicuna_v1": "Be brief. USER: <image> \n What? ASSISTANT: [two] [five] [</s>]",
    "chatml": "<|im_start|> system \n Be brief. <|im_end|> \n <|im_start|> user \n <image> \n What? <|im_end|> \n "
    "<|im_start|> assistant \n [two] [five] [<|im_end|>] \n",
    "llama3": "<|start_header_id|> system <|end_header_id|> \n\n Be brief. <|eot_id|> "
    "<|start_header_id|> user <|end_header_id|> \n\n <image> \n What? <|eot_id|> "
    "<|start_header_id|> assistant <|end_header_id|> \n\n [two] [five] [<|eot_id|>]",
}
BY_HAND |= {name: BY_HAND["vicuna_v1"].replace("</s>", end) for name, end in ENDS.items()}


@pytest.fixture
def pieces_tokenizer(chat_tokens: list[str]) -> PreTrainedTokenizerFast:
    """Words and line breaks, without their spaces."""
    backend = Tokenizer(models.WordLevel({piece: number for number, piece in enumerate(PIECES)}, unk_token="two"))
    lines, spaces = Regex(r"\n+"), Regex(r" +")
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(spaces, "removed"), pre_tokenizers.Split(lines, "isolated")]
    )
    tokens = PreTrainedTokenizerFast(tokenizer_object=backend)
    tokens.add_tokens(["</s>", "<image>", *chat_tokens], special_tokens=True)
    return tokens


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_mask_by_hand(name: str, pieces_tokenizer: PreTrainedTokenizerFast, make_sample: MakeSample) -> None:
    sample = make_sample("<image>\nWhat?", "two five", images=("a.png",))
    encoded = encode(sample, TEMPLATES[name], pieces_tokenizer, None if name == "plain" else "Be brief.")
    tokens = pieces_tokenizer.convert_ids_to_tokens(encoded.token_ids)
    shown = [f"[{token}]" if label != -100 else token for token, label in zip(tokens, encoded.labels, strict=True)]
    assert shown == BY_HAND[name].split(" ")


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("kind", ["byte_tokenizer", "llama_tokenizer"])
def test_the_mask_is_hugging_faces_own(
    name: str, kind: str, request: pytest.FixtureRequest, make_sample: MakeSample
) -> None:
    tokenizer: PreTrainedTokenizerFast = request.getfixturevalue(kind)
    texts = ("<image>\nWhat digit is it?", "two five", "<image>\nSure? é", "yes 😀 no")
    encoded = encode(
        make_sample(*texts, images=("a", "b")), TEMPLATES[name], tokenizer, None if name == "plain" else "Be brief."
    )
    messages = [
        {"role": "user" if number % 2 == 0 else "assistant", "content": text} for number, text in enumerate(texts)
    ]
    expected: Any = tokenizer.apply_chat_template(
        messages, chat_template=MARKED[name], tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    # apply_chat_template adds no begin-of-sequence token.
    assert encoded.token_ids == [tokenizer.bos_token_id, *expected["input_ids"]]
    tokens, learnt = encoded.token_ids[1:], [label != -100 for label in encoded.labels[1:]]
    by_mask = [bool(mark) for mark in expected["assistant_masks"]]
    if name in ("vicuna_v1", *ENDS):
        # Ours is also taught the space before an answer where that is a token of its own.
        spaces = [tokenizer.convert_tokens_to_ids(space) for space in ("Ġ", "▁")]
        by_mask = [
            mark or (token in spaces and following)
            for token, mark, following in zip(tokens, by_mask, [*by_mask[1:], False], strict=True)
        ]
    assert learnt == by_mask and any(learnt)
