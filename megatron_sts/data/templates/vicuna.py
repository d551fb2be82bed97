"""Vicuna's template, as LLaVA-1.5 writes it, and with the end of an answer of other tokenizers."""

from megatron_sts.data.sample import Sample, placed_images
from megatron_sts.data.templates.template import READ_MESSAGE, Segment, Template, jinja_string, system_of


class VicunaTemplate(Template):
    """`SYSTEM USER: question ASSISTANT: answer</s>USER: ...`. The model learns each answer and the `</s>` behind it.

    stop: what stands in place of `</s>`.
    """

    stop: str
    system_prompt = (
        "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions."
    )

    def __init__(self, name: str = "vicuna_v1", stop: str = "</s>"):
        self.name, self.stop, self.special_tokens = name, stop, (stop,)

    def render(self, sample: Sample, system_prompt: str | None = None) -> list[Segment]:
        segments = []
        before = self._opening(system_of(sample, system_prompt))
        for turn in sample.turns:
            if turn.role == "human":
                segments.append(Segment(before + self._question(turn.text)))
                before = ""
            else:
                segments.append(Segment(f" {turn.text.strip()}{self.stop}", turn.weight))
        return segments

    def prompt(self, human_text: str, system_prompt: str | None = None) -> str:
        return self._opening(system_prompt) + self._question(human_text)

    def chat_template(self, system_prompt: str | None = None) -> str:
        return (
            "{%- for message in messages -%}" + READ_MESSAGE + "{%- if loop.first -%}"
            "{%- if message['role'] == 'system' -%}{{- turn.text + ' ' if turn.text else '' -}}"
            "{%- else -%}{{- '" + jinja_string(self._opening(system_prompt)) + "' -}}"
            "{%- endif -%}"
            "{%- endif -%}"
            "{%- if message['role'] == 'user' -%}{{- 'USER: ' + turn.text + ' ' -}}"
            "{%- elif message['role'] == 'assistant' -%}"
            "{{- 'ASSISTANT:' -}}"
            "{{- ' ' + turn.text + '" + self.stop + "' -}}"
            "{%- endif -%}"
            "{%- endfor -%}"
            "{%- if add_generation_prompt -%}{{- 'ASSISTANT:' -}}{%- endif -%}"
        )

    def _opening(self, system_prompt: str | None) -> str:
        text = (self.system_prompt if system_prompt is None else system_prompt).strip()
        return f"{text} " if text else ""

    def _question(self, human_text: str) -> str:
        return f"USER: {placed_images(human_text)} ASSISTANT:"


VICUNA = VicunaTemplate()
MIPHA_PHI = VicunaTemplate("mipha_phi", "<|endoftext|>")
MIPHA_GEMMA = VicunaTemplate("mipha_gemma", "<eos>")
