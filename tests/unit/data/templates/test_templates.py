"""Shows what the templates write and supervise; prompt and chat template write the same."""

from collections.abc import Callable
from typing import Any

import jinja2
import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers import PreTrainedTokenizerFast

from megatron_sts.data import TEMPLATES, Sample, Segment, Template
from megatron_sts.errors import ConfigError

MakeSample = Callable[..., Sample]
PLAIN, VICUNA = TEMPLATES["plain"], TEMPLATES["vicuna_v1"]
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


def user(*parts: str) -> dict[str, Any]:
    return {
        "role": "user",
        "content": [{"type": "image"} if part == "<image>" else {"type": "text", "text": part} for part in parts],
    }


def rendered(chat_template: str, messages: list[dict[str, Any]], add_generation_prompt: bool = True) -> str:
    """As plain jinja2 renders it, with the switches `apply_chat_template` uses."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(chat_template)
    return template.render(messages=messages, add_generation_prompt=add_generation_prompt)


def test_the_registry_knows_each_template_by_its_name() -> None:
    names = ["plain", "vicuna_v1", "chatml", "llama3", "mipha_phi", "mipha_gemma"]
    assert {name: template.name for name, template in TEMPLATES.items()} == dict(zip(names, names, strict=True))


def test_vicuna_supervises_answers_and_their_end(make_sample: MakeSample) -> None:
    sample = make_sample("<image>\nWhat digit?", "two", "Sure? ", " yes\n", images=("a.png",))
    assert VICUNA.render(sample) == [
        Segment(f"{SYSTEM} USER: <image>\nWhat digit? ASSISTANT:"),
        Segment(" two</s>", 1.0),
        Segment("USER: Sure? ASSISTANT:"),
        Segment(" yes</s>", 1.0),
    ]


def test_mipha_ends_answers_as_its_tokenizers_do(make_sample: MakeSample) -> None:
    sample = make_sample("What digit?", "two")
    for name, end in (("mipha_phi", "<|endoftext|>"), ("mipha_gemma", "<eos>")):
        assert TEMPLATES[name].render(sample, "")[1] == Segment(f" two{end}", 1.0)
        assert TEMPLATES[name].special_tokens == (TEMPLATES[name].stop,) == (end,)


@pytest.mark.parametrize(("system", "start"), [("", ""), (None, f"{SYSTEM} "), ("Be brief. ", "Be brief. ")])
def test_vicuna_system_prompt_is_its_own_none_or_given(system: str | None, start: str) -> None:
    assert VICUNA.prompt("Hi", system) == f"{start}USER: Hi ASSISTANT:"


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("What is this? <image>", "<image>\nWhat is this?"),
        ("What <image> is this?", "<image>\nWhat  is this?"),
        ("<image>\n", "<image>"),
        ("<image><image> \n Alike?", "<image>\n<image>\nAlike?"),
        ("Is <image> like <image>?", "Is <image> like <image>?"),
        ("<image>Is it like <image>?", "<image>\nIs it like <image>?"),
        (" Hi ", "Hi"),
    ],
)
def test_a_single_image_comes_first_and_several_stay_where_they_are(written: str, expected: str) -> None:
    assert VICUNA.prompt(written, "") == f"USER: {expected} ASSISTANT:"


def test_plain_is_image_caption_newline_without_the_question(make_sample: MakeSample) -> None:
    sample = make_sample("<image>\nDescribe.", " Row one: two. ", images=("a.png",))
    assert PLAIN.render(sample) == [Segment("<image>"), Segment("Row one: two.\n", 1.0)]


def test_plain_text_is_the_answers_alone(make_sample: MakeSample) -> None:
    assert PLAIN.render(make_sample("Say.", "one", "More.", "two")) == [
        Segment("one\n", 1.0),
        Segment("two\n", 1.0),
    ]


def test_plain_refuses_a_system_prompt(make_sample: MakeSample) -> None:
    with pytest.raises(ConfigError, match=r"data\.system_prompt: found 'Be brief\.'.*remove it"):
        PLAIN.render(make_sample("a", "b"), "Be brief.")
    assert PLAIN.prompt("<image>", "") == "<image>"


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_prompt_is_what_stands_before_the_first_answer(template: Template, make_sample: MakeSample) -> None:
    sample = make_sample("Look <image> here", "two", "Sure?", "yes", images=("a.png",))
    assert template.prompt(sample.turns[0].text) == template.render(sample)[0].text


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
@pytest.mark.parametrize(
    "parts",
    [
        ("<image>", "What digit?"),
        ("What digit?", "<image>"),
        ("Is ", "<image>", " like ", "<image>", "?\n"),
        ("<image>", "<image>", "Alike?"),
        ("<image>", " \n", "<image>", " is like ", "<image>", "<image>"),
        ("<image>",),
        ("Hi 'you' {{ there }} {% x %}",),
    ],
)
def test_chat_template_writes_the_prompt(template: Template, parts: tuple[str, ...]) -> None:
    expected = template.prompt("".join(parts))
    assert rendered(template.chat_template(), [user(*parts)]) == expected
    as_string = [{"role": "user", "content": "".join(parts)}]
    assert rendered(template.chat_template(), as_string) == expected


@pytest.mark.parametrize("system", [None, "", 'It\'s \\n {{ a }} {%- b -%} "c"\nd é 😀 #}'])
def test_chat_template_holds_the_system_prompt_whatever_its_characters(system: str | None) -> None:
    assert rendered(VICUNA.chat_template(system), [user("Hi")]) == VICUNA.prompt("Hi", system)


def test_chat_template_takes_a_system_message_instead_of_its_own() -> None:
    messages = [{"role": "system", "content": "Be brief."}, user("Hi")]
    assert rendered(VICUNA.chat_template(), messages) == VICUNA.prompt("Hi", "Be brief.")


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_chat_template_writes_whole_conversations(template: Template, make_sample: MakeSample) -> None:
    sample = make_sample("<image>\nWhat digit?", "two", "Sure?", "yes", images=("a.png",))
    messages = [
        user("<image>", "What digit?"),
        {"role": "assistant", "content": [{"type": "text", "text": "two"}]},
        user("Sure?"),
        {"role": "assistant", "content": "yes"},
    ]
    expected = "".join(segment.text for segment in template.render(sample))
    assert rendered(template.chat_template(), messages, add_generation_prompt=False) == expected


def test_chat_template_works_in_transformers(word_tokenizer: PreTrainedTokenizerFast) -> None:
    text = word_tokenizer.apply_chat_template(
        [user("<image>", "What digit?")],
        chat_template=VICUNA.chat_template(),
        tokenize=False,
        add_generation_prompt=True,
    )
    assert text == VICUNA.prompt("<image>\nWhat digit?")
