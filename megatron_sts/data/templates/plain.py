"""LLaVA's template for alignment."""

from megatron_sts.data.sample import IMAGE_TOKEN, Sample
from megatron_sts.data.templates.template import READ_MESSAGE, Segment, Template
from megatron_sts.errors import ConfigError


class PlainTemplate(Template):
    """The images, the caption and a newline. What the human and the system prompt say is dropped.

    A conversation without images is its answers, each on a line.
    """

    name = "plain"
    stop = None
    special_tokens = ()

    def render(self, sample: Sample, system_prompt: str | None = None) -> list[Segment]:
        self._refuse(system_prompt)
        segments = []
        for turn in sample.turns:
            if turn.role == "assistant":
                segments.append(Segment(turn.text.strip() + "\n", turn.weight))
            elif IMAGE_TOKEN in turn.text:
                segments.append(Segment(self.prompt(turn.text)))
        return segments

    def prompt(self, human_text: str, system_prompt: str | None = None) -> str:
        self._refuse(system_prompt)
        return IMAGE_TOKEN * human_text.count(IMAGE_TOKEN)

    def chat_template(self, system_prompt: str | None = None) -> str:
        self._refuse(system_prompt)
        return (
            "{%- for message in messages -%}" + READ_MESSAGE + "{%- if message['role'] == 'user' -%}"
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
                "remove it or use another template"
            )
