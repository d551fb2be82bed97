"""How a conversation is written for a language model, and which of it the model learns to write.

Every template puts a turn's images before its text, one a line, as LLaVA-1.5 does.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from megatron_sts.data.sample import IMAGE_TOKEN, Sample
from megatron_sts.errors import ConfigError

# Reads one message of a chat, whose content is a string or a list of image and text parts, into
# `turn.images` (a count) and `turn.text`.
_READ_MESSAGE = (
    "{%- set turn = namespace(images=0, text='') -%}"
    "{%- if message['content'] is string -%}"
    "{%- set turn.images = message['content'].count('<image>') -%}"
    "{%- set turn.text = message['content'].replace('<image>', '') -%}"
    "{%- else -%}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}{%- set turn.images = turn.images + 1 -%}"
    "{%- elif part['type'] == 'text' -%}{%- set turn.text = turn.text + part['text'] -%}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- endif -%}"
    "{%- set turn.text = turn.text | trim -%}"
)


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of a rendered conversation; the model is trained to write the supervised ones."""

    text: str
    supervised: bool


class Template(ABC):
    """A way to write a conversation. `system_prompt`: None is the template's own, "" is none.

    Contract: `prompt` of a sample's first human turn is how `render` begins, up to its first supervised
    segment; `chat_template` renders the same text. `encode` and the exported tokenizer rely on both.
    """

    name: ClassVar[str]
    stop: ClassVar[str | None]
    """The text that ends an answer and must be the tokenizer's end-of-sequence token, if there is one."""

    @abstractmethod
    def render(self, sample: Sample, system_prompt: str | None = None) -> list[Segment]:
        """The whole conversation, in order."""

    @abstractmethod
    def prompt(self, human_text: str, system_prompt: str | None = None) -> str:
        """What stands before the first answer; it ends where generation starts."""

    @abstractmethod
    def chat_template(self, system_prompt: str | None = None) -> str:
        """A jinja template for `apply_chat_template` that writes what `prompt` and `render` write."""


class PlainTemplate(Template):
    """LLaVA's template for alignment: the images, the caption and a newline. What the human says is dropped.

    A conversation without images is its answers, each on a line.
    """

    name = "plain"
    stop = None

    def render(self, sample: Sample, system_prompt: str | None = None) -> list[Segment]:
        self._refuse(system_prompt)
        segments = []
        for turn in sample.turns:
            if turn.role == "assistant":
                segments.append(Segment(turn.text.strip() + "\n", supervised=True))
            elif IMAGE_TOKEN in turn.text:
                segments.append(Segment(self.prompt(turn.text), supervised=False))
        return segments

    def prompt(self, human_text: str, system_prompt: str | None = None) -> str:
        self._refuse(system_prompt)
        return IMAGE_TOKEN * human_text.count(IMAGE_TOKEN)

    def chat_template(self, system_prompt: str | None = None) -> str:
        self._refuse(system_prompt)
        return (
            "{%- for message in messages -%}" + _READ_MESSAGE + "{%- if message['role'] == 'user' -%}"
            "{{- '<image>' * turn.images -}}"
            "{%- elif message['role'] == 'assistant' -%}"
            "{{- turn.text + '\\n' -}}"
            "{%- endif -%}"
            "{%- endfor -%}"
        )

    def _refuse(self, system_prompt: str | None) -> None:
        if system_prompt:
            raise ConfigError(
                f"data.system_prompt: found {system_prompt!r}, but the template 'plain' takes none; "
                "remove it or use the template 'vicuna_v1'"
            )


class VicunaTemplate(Template):
    """Vicuna's form, as LLaVA-1.5 writes it: `SYSTEM USER: question ASSISTANT: answer</s>USER: ...`.

    The model learns each answer and the `</s>` behind it.
    """

    name = "vicuna_v1"
    stop = "</s>"
    system_prompt = (
        "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions."
    )

    def render(self, sample: Sample, system_prompt: str | None = None) -> list[Segment]:
        segments = []
        before = self._opening(system_prompt)
        for turn in sample.turns:
            if turn.role == "human":
                segments.append(Segment(before + self._question(turn.text), supervised=False))
                before = ""
            else:
                segments.append(Segment(f" {turn.text.strip()}{self.stop}", supervised=True))
        return segments

    def prompt(self, human_text: str, system_prompt: str | None = None) -> str:
        return self._opening(system_prompt) + self._question(human_text)

    def chat_template(self, system_prompt: str | None = None) -> str:
        return (
            "{%- for message in messages -%}" + _READ_MESSAGE + "{%- if loop.first -%}"
            "{%- if message['role'] == 'system' -%}{{- turn.text + ' ' if turn.text else '' -}}"
            "{%- else -%}{{- '" + _escaped(self._opening(system_prompt)) + "' -}}"
            "{%- endif -%}"
            "{%- endif -%}"
            "{%- if message['role'] == 'user' -%}"
            "{%- set lines = ['<image>'] * turn.images + ([turn.text] if turn.text else []) -%}"
            "{{- 'USER: ' + lines | join('\\n') + ' ' -}}"
            "{%- elif message['role'] == 'assistant' -%}"
            "{{- 'ASSISTANT: ' + turn.text + '" + self.stop + "' -}}"
            "{%- endif -%}"
            "{%- endfor -%}"
            "{%- if add_generation_prompt -%}{{- 'ASSISTANT:' -}}{%- endif -%}"
        )

    def _opening(self, system_prompt: str | None) -> str:
        text = (self.system_prompt if system_prompt is None else system_prompt).strip()
        return f"{text} " if text else ""

    def _question(self, human_text: str) -> str:
        text = human_text.replace(IMAGE_TOKEN, "").strip()
        lines = [IMAGE_TOKEN] * human_text.count(IMAGE_TOKEN) + ([text] if text else [])
        return "USER: " + "\n".join(lines) + " ASSISTANT:"


def _escaped(text: str) -> str:
    """`text` as it stands between single quotes in jinja, which reads Python's escapes."""
    return text.encode("unicode_escape").decode("ascii").replace("'", "\\'")


TEMPLATES: dict[str, Template] = {template.name: template for template in (PlainTemplate(), VicunaTemplate())}
