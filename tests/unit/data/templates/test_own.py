"""Shows that a tokenizer's own chat template trains as the template of its format does, or is refused by name."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from megatron_sts.data import TEMPLATES, Sample, Template, encode, find_template
from megatron_sts.errors import DataError

MakeSample = Callable[..., Sample]

# As Qwen2 has it: text alone, a system prompt where the chat has none.
CHATML = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}"
    "{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHATML_MARKED = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ message['content'] + '<|im_end|>\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# As Llama 3 has it: begins with the token that the tokenizer adds too.
LLAMA3 = (
    "{% for message in messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim"
    " + '<|eot_id|>' %}"
    "{% if loop.first %}{% set content = bos_token + content %}{% endif %}{{ content }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)


def with_template(tokenizer: PreTrainedTokenizerFast, chat_template: str | None) -> PreTrainedTokenizerFast:
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = chat_template
    return changed


def rendered(tokenizer: PreTrainedTokenizerFast, template: str, messages: list[dict[str, Any]]) -> Any:
    return tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, add_generation_prompt=True)


@pytest.mark.parametrize(
    ("own", "name", "system"),
    [(CHATML, "chatml", None), (CHATML, "chatml", "Be brief."), (CHATML_MARKED, "chatml", "Be brief."),
     (LLAMA3, "llama3", None), (LLAMA3, "llama3", "Be brief.")],
    ids=["chatml", "chatml system", "marked", "llama3", "llama3 system"],
)  # fmt: skip
def test_it_trains_as_the_template_of_its_format(
    own: str, name: str, system: str | None, byte_tokenizer: PreTrainedTokenizerFast, make_sample: MakeSample
) -> None:
    tokenizer = with_template(byte_tokenizer, own)
    template = find_template("tokenizer", tokenizer)
    sample = make_sample("What <image>?", " two\n", "Is <image> like <image>", "no", images=("a", "b", "c"))
    found = encode(sample, template, tokenizer, system)
    assert found == encode(sample, TEMPLATES[name], tokenizer, system)
    assert found.token_ids.count(tokenizer.bos_token_id) == 1
    assert template.stop == TEMPLATES[name].stop
    prompt = template.prompt(sample.turns[0].text, system).removeprefix("<s>")
    assert prompt == TEMPLATES[name].prompt(sample.turns[0].text, system)


def test_a_samples_own_system_prompt_comes_first(
    byte_tokenizer: PreTrainedTokenizerFast, make_sample: MakeSample
) -> None:
    sample = Sample("a", make_sample("Hi", "yes").turns, (), "Own.")
    own = find_template("tokenizer", with_template(byte_tokenizer, CHATML))
    templates: list[Template] = [*TEMPLATES.values(), own]
    for template in templates:
        text = template.render(sample, None if template.name == "plain" else "Of the recipe.")[0].text
        assert ("Own." in text, "recipe" in text) == (template.name != "plain", False)


def test_the_exported_template_takes_parts_and_a_system_prompt(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    template = find_template("tokenizer", with_template(byte_tokenizer, CHATML))
    parts = [{"type": "text", "text": "What "}, {"type": "image"}, {"type": "text", "text": "?"}]
    messages: list[dict[str, Any]] = [{"role": "user", "content": parts}]
    for system in (None, "It's {{ brief }}"):
        exported = template.chat_template(system)
        assert rendered(byte_tokenizer, exported, messages) == template.prompt("What <image>?", system)
        assert rendered(byte_tokenizer, exported, [{"role": "user", "content": "Hi"}]) == template.prompt("Hi", system)
    own = [{"role": "system", "content": "Own."}, *messages]
    assert rendered(byte_tokenizer, template.chat_template("Other."), own) == template.prompt("What <image>?", "Own.")


def test_an_answer_that_is_written_otherwise_when_turns_follow_is_refused(
    byte_tokenizer: PreTrainedTokenizerFast, make_sample: MakeSample
) -> None:
    # As Qwen3 drops the thoughts of earlier answers.
    forgetful = CHATML.replace(
        "message['content'] +", "(message['content'] if loop.last or message['role'] == 'user' else 'dropped') +"
    )
    template = find_template("tokenizer", with_template(byte_tokenizer, forgetful))
    assert template.render(make_sample("Hi", "yes"))[-2].text == "yes<|im_end|>"
    with pytest.raises(DataError, match=r"'tokenizer': .* writes answers otherwise when turns follow.*name a template"):
        template.render(make_sample("Hi", "yes", "So?", "no"))


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        (None, "has no chat template; name a template"),
        (CHATML + "{{ strftime_now('%d') }}", "writes the date.*fixed date"),
        ("{{ raise_exception('no') }}", r"has a chat template that fails \(no\)"),
        ("{% for %}", "has a chat template that fails"),
        ("{{ messages[0].nothing.at_all }}", "has a chat template that fails"),
        ("{% generation %}{% endgeneration %}", "marks no answer"),
    ],
)
def test_a_template_that_cannot_be_trained_with_is_refused(
    own: str | None, expected: str, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(DataError, match=rf"data\.template 'tokenizer': .*{expected}"):
        find_template("tokenizer", with_template(byte_tokenizer, own))


@pytest.mark.parametrize("own", [CHATML, CHATML_MARKED], ids=["chatml", "marked"])
def test_answers_weigh_what_they_do_in_the_template_of_its_format(
    own: str, byte_tokenizer: PreTrainedTokenizerFast, make_sample: MakeSample
) -> None:
    tokenizer = with_template(byte_tokenizer, own)
    sample = make_sample("What?", "two", "Sure?", "", "And?", "no")
    turns = [replace(turn, weight=weight) for turn, weight in zip(sample.turns, (1, 0.5, 1, 0, 1, 2), strict=True)]
    sample = replace(sample, turns=tuple(turns))
    found = encode(sample, find_template("tokenizer", tokenizer), tokenizer, "Be brief.")
    assert found == encode(sample, TEMPLATES["chatml"], tokenizer, "Be brief.")
    assert found.weights is not None and set(found.weights) == {0, 0.5, 2}


def test_a_template_that_marks_an_answer_twice_takes_no_weights(
    byte_tokenizer: PreTrainedTokenizerFast, make_sample: MakeSample
) -> None:
    generation = "{% generation %}{{ message['content'] }}{% endgeneration %}"
    twice = CHATML_MARKED.replace("{% generation %}", generation + "{% generation %}", 1)
    tokenizer = with_template(byte_tokenizer, twice)
    template = find_template("tokenizer", tokenizer)
    sample = make_sample("What?", "two")
    assert encode(sample, template, tokenizer).weights is None
    with pytest.raises(DataError, match="marks 2 stretches for 1 answers"):
        encode(replace(sample, turns=(sample.turns[0], replace(sample.turns[1], weight=0.5))), template, tokenizer)
