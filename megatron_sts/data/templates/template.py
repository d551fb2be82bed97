"""What a conversation template is."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from megatron_sts.data.sample import Sample

# Reads one message of a chat, whose content is a string or a list of image and text parts, into `turn.images` (a
# count) and `turn.text`.
# Contract: `data.sample.placed_images` puts the images of a turn where this does.
READ_MESSAGE = (
    "{%- set turn = namespace(text='', images=0, first=[]) -%}"
    "{%- if message['content'] is string -%}{%- set turn.text = message['content'] -%}"
    "{%- else -%}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}{%- set turn.text = turn.text + '<image>' -%}"
    "{%- elif part['type'] == 'text' -%}{%- set turn.text = turn.text + part['text'] -%}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- endif -%}"
    "{%- set turn.text = turn.text | trim -%}"
    "{%- set turn.images = turn.text.count('<image>') -%}"
    "{%- if turn.images == 1 -%}"
    "{%- set turn.text = '<image>' + turn.text.replace('<image>', '') -%}"
    "{%- endif -%}"
    "{%- for _ in range(turn.images) -%}"
    "{%- if turn.text.startswith('<image>') -%}"
    "{%- set turn.first = turn.first + ['<image>'] -%}"
    "{%- set turn.text = turn.text[7:] | trim -%}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- set turn.text = (turn.first + ([turn.text] if turn.text else [])) | join('\\n') -%}"
)


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of a rendered conversation, and what the loss of its tokens is multiplied by; 0: context only."""

    text: str
    weight: float = 0.0


class Template(ABC):
    """A way to write a conversation. `system_prompt`: None is the template's own, "" is none; a sample's own comes
    before both.

    A begin-of-sequence token is the tokenizer's to write, not a template's.

    Contract: `prompt` of a sample's first human turn is how `render` begins, up to its first answer; `chat_template`
    renders the same text. `encode` and the exported tokenizer rely on both.
    """

    name: str
    stop: str | None
    """The token that ends an answer, if there is one."""
    special_tokens: tuple[str, ...]
    """What the tokenizer must have as tokens of their own."""

    @abstractmethod
    def render(self, sample: Sample, system_prompt: str | None = None) -> list[Segment]:
        """The whole conversation, in order."""

    @abstractmethod
    def prompt(self, human_text: str, system_prompt: str | None = None) -> str:
        """What stands before the first answer; it ends where generation starts."""

    @abstractmethod
    def chat_template(self, system_prompt: str | None = None) -> str:
        """A jinja template for `apply_chat_template` that writes what `prompt` and `render` write."""


def system_of(sample: Sample, system_prompt: str | None) -> str | None:
    """The system prompt of a sample: its own, else the one given."""
    return system_prompt if sample.system is None else sample.system


def jinja_string(text: str) -> str:
    """`text` as it stands between single quotes in jinja, which reads Python's escapes."""
    return text.encode("unicode_escape").decode("ascii").replace("'", "\\'")
