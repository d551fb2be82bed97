"""A tokenizer's own chat template, of whatever Hugging Face model."""

import re
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from megatron_sts.data.sample import Sample, Turn, placed_images
from megatron_sts.data.templates.template import READ_MESSAGE, Segment, Template, jinja_string, system_of
from megatron_sts.errors import DataError

_GENERATION = re.compile(r"\{%-?\s*generation\b")
_PROBE = Sample("probe", (Turn("human", "one"), Turn("assistant", "two")), ())

# Gives each message a text alone, its images marked by `<image>`: most chat templates know no parts.
_AS_TEXT = (
    "{%- set read = namespace(messages=[]) -%}"
    "{%- for message in messages -%}" + READ_MESSAGE + "{%- set read.messages = "
    "read.messages + [dict(message, content=turn.text)] -%}"
    "{%- endfor -%}"
    "{%- set messages = read.messages -%}"
)


class TokenizerTemplate(Template):
    """What the model learns is what the template marks by `{% generation %}`; without such marks, what an answer adds
    to the conversation before it, up to its last character that is no space.

    Raises:
        DataError: the tokenizer has no chat template, or one that writes the date, that fails, or in which a
            conversation does not begin as the conversation before its last answer does.
    """

    name = "tokenizer"
    special_tokens = ()

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer_name = tokenizer.name_or_path
        try:
            self._template = tokenizer.get_chat_template()
        except ValueError:
            raise self._error("has no chat template", "name a template") from None
        if "strftime_now" in self._template:
            raise self._error(
                "writes the date into its chat template, so that the data would change from day to day",
                "give a copy of it whose template has a fixed date",
            )
        self._marks_answers = _GENERATION.search(self._template) is not None
        self._variables: dict[str, Any] = dict(tokenizer.special_tokens_map)
        tokens = {token.content for token in tokenizer.added_tokens_decoder.values()}
        learnt = [segment.text for segment in self.render(_PROBE) if segment.weight]
        if not learnt:
            raise self._error("marks no answer in its chat template", "correct its {% generation %}")
        self.stop = next((token for token in tokens if learnt[-1].rstrip().endswith(token)), None)

    def render(self, sample: Sample, system_prompt: str | None = None) -> list[Segment]:
        messages = self._messages(sample, system_of(sample, system_prompt))
        weights = [turn.weight for turn in sample.turns if turn.role == "assistant"]
        if self._marks_answers:
            text, answers = self._rendered(messages, marked=True)
            if len(answers) != len(weights):
                if set(weights) != {1.0}:
                    raise self._error(
                        f"marks {len(answers)} stretches for {len(weights)} answers in its chat template, so that an "
                        "answer cannot be given a weight or be empty",
                        "mark each answer once by {% generation %}",
                    )
                weights = [1.0] * len(answers)
            learnt = list(zip(answers, weights, strict=True))
        else:
            text, learnt = self._prefixes(messages, weights)
        segments, position = [], 0
        for (start, end), weight in learnt:
            segments.append(Segment(text[position:start]))
            segments.append(Segment(text[start:end], weight))
            position = end
        segments.append(Segment(text[position:]))
        return [segment for segment in segments if segment.text]

    def prompt(self, human_text: str, system_prompt: str | None = None) -> str:
        sample = Sample("prompt", (Turn("human", human_text),), ())
        return self._rendered(self._messages(sample, system_prompt), prompts=True)[0]

    def chat_template(self, system_prompt: str | None = None) -> str:
        system = ""
        if system_prompt:
            system = (
                "{%- if messages[0]['role'] != 'system' -%}"
                "{%- set messages = [{'role': 'system', 'content': '"
                + jinja_string(system_prompt)
                + "'}] + messages -%}"
                "{%- endif -%}"
            )
        return _AS_TEXT + system + self._template

    def _messages(self, sample: Sample, system_prompt: str | None) -> list[dict[str, str]]:
        messages = [{"role": "system", "content": system_prompt}] if system_prompt else []
        for turn in sample.turns:
            human = turn.role == "human"
            text = placed_images(turn.text) if human else turn.text.strip()
            messages.append({"role": "user" if human else "assistant", "content": text})
        return messages

    def _prefixes(
        self, messages: list[dict[str, str]], weights: list[float]
    ) -> tuple[str, list[tuple[tuple[int, int], float]]]:
        """The text, and where the answers that are learnt lie in it, each with its weight."""
        text, learnt = self._rendered(messages)[0], []
        answers = (number for number, message in enumerate(messages) if message["role"] == "assistant")
        for number, weight in zip(answers, weights, strict=True):
            if weight:
                before = self._rendered(messages[:number], prompts=True)[0]
                after = self._rendered(messages[: number + 1])[0].rstrip()
                if not (text.startswith(before) and text.startswith(after) and len(before) < len(after)):
                    raise self._error(
                        "writes answers otherwise when turns follow, and does not mark them, in its chat template",
                        "add {% generation %} to it, or name a template",
                    )
                learnt.append(((len(before), len(after)), weight))
        return text, learnt

    def _rendered(
        self, messages: list[dict[str, str]], prompts: bool = False, marked: bool = False
    ) -> tuple[str, list[tuple[int, int]]]:
        """The text, and where the answers lie in it if it is `marked`."""
        try:
            rendered: Any = render_jinja_template(
                [messages],
                chat_template=self._template,
                return_assistant_tokens_mask=marked,
                add_generation_prompt=prompts,
                **self._variables,
            )
        except (jinja2.TemplateError, TypeError, ValueError, KeyError) as error:
            raise self._error(f"has a chat template that fails ({error})", "correct it, or name a template") from error
        (text,), learnt = rendered
        return text, learnt[0] if marked else []

    def _error(self, found: str, remedy: str) -> DataError:
        return DataError(f"data.template 'tokenizer': {self._tokenizer_name!r} {found}; {remedy}")
