"""Templates that open each turn with its speaker's name and close it with a token: ChatML and Llama 3."""

from dataclasses import dataclass

from megatron_sts.data.sample import Sample, placed_images
from megatron_sts.data.templates.template import READ_MESSAGE, Segment, Template, jinja_string, system_of


@dataclass(frozen=True)
class HeadedTemplate(Template):
    """`opening role closing text stop between`, turn after turn. The model learns each answer and the stop."""

    name: str
    opening: str
    """Before the speaker's name."""
    closing: str
    """Behind the speaker's name."""
    stop: str
    between: str
    """Behind the stop, not learnt."""
    special_tokens: tuple[str, ...]
    system_prompt: str

    def render(self, sample: Sample, system_prompt: str | None = None) -> list[Segment]:
        segments = []
        before = self._system(system_of(sample, system_prompt))
        for turn in sample.turns:
            if turn.role == "human":
                segments.append(Segment(before + self._question(turn.text)))
            else:
                segments.append(Segment(turn.text.strip() + self.stop, turn.weight))
                before = self.between
        if self.between:
            segments.append(Segment(self.between))
        return segments

    def prompt(self, human_text: str, system_prompt: str | None = None) -> str:
        return self._system(system_prompt) + self._question(human_text)

    def chat_template(self, system_prompt: str | None = None) -> str:
        opening, closing, end = map(jinja_string, (self.opening, self.closing, self.stop + self.between))
        return (
            "{%- for message in messages -%}" + READ_MESSAGE + "{%- if loop.first and message['role'] != 'system' -%}"
            "{{- '" + jinja_string(self._system(system_prompt)) + "' -}}"
            "{%- endif -%}"
            "{%- if message['role'] == 'assistant' -%}"
            "{{- '" + opening + "assistant" + closing + "' -}}"
            "{{- turn.text + '" + jinja_string(self.stop) + "' -}}"
            "{{- '" + jinja_string(self.between) + "' -}}"
            "{%- elif message['role'] == 'user' or turn.text -%}"
            "{{- '" + opening + "' + message['role'] + '" + closing + "' + turn.text + '" + end + "' -}}"
            "{%- endif -%}"
            "{%- endfor -%}"
            "{%- if add_generation_prompt -%}{{- '" + opening + "assistant" + closing + "' -}}{%- endif -%}"
        )

    def _system(self, system_prompt: str | None) -> str:
        text = (self.system_prompt if system_prompt is None else system_prompt).strip()
        return self._turn("system", text) if text else ""

    def _question(self, human_text: str) -> str:
        return f"{self._turn('user', placed_images(human_text))}{self.opening}assistant{self.closing}"

    def _turn(self, role: str, text: str) -> str:
        return f"{self.opening}{role}{self.closing}{text}{self.stop}{self.between}"


CHATML = HeadedTemplate(
    name="chatml",
    opening="<|im_start|>",
    closing="\n",
    stop="<|im_end|>",
    between="\n",
    special_tokens=("<|im_start|>", "<|im_end|>"),
    system_prompt="You are a helpful assistant.",
)
"""OpenAI's ChatML with the system prompt of Qwen's models."""

LLAMA3 = HeadedTemplate(
    name="llama3",
    opening="<|start_header_id|>",
    closing="<|end_header_id|>\n\n",
    stop="<|eot_id|>",
    between="",
    special_tokens=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    system_prompt="",
)
"""Llama 3's form, without a system prompt of its own."""
