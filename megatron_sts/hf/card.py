"""The model card of an exported model: what it is, how it was trained, and what the run measured; nothing more."""

from pydantic import BaseModel

from megatron_sts.config import Run, StageConfig, resolved_yaml
from megatron_sts.hf.saving import StageSaving, measured_savings


def model_card(name: str, run: Run, dtype: str) -> str:
    """README.md of the exported model, in Markdown.

    What was measured comes from metrics.jsonl in the recipe's output_dir; where it is not there, the card says so.
    """
    vision, language = run.recipe.architecture.vision, run.recipe.architecture.language
    versions = ", ".join(f"{package} {version}" for package, version in sorted(run.versions.items()))
    return f"""---
library_name: transformers
pipeline_tag: image-text-to-text
tags:
- llava
- megatron_sts
---

# {name}

{_origin(run)}

- Vision tower: {vision.family}, {vision.layers} layers of width {vision.hidden_size},
  images of {vision.image_size} px in patches of {vision.patch_size} px,
  feature layer {vision.feature_layer}, {run.recipe.architecture.visual_tokens} visual tokens an image
- Language model: {language.family}, {language.layers} layers of width {language.hidden_size},
  {language.attention_heads} heads in {language.query_groups} groups, {language.vocabulary_size} tokens
- Checkpoint: stage `{run.stage}`, step {run.step}; exported in {dtype}
- Precision of the recipe: {run.recipe.precision}; seed {run.recipe.seed}
- Made with: {versions or "versions not recorded"}

## Training

{_training(run)}

<details><summary>The whole recipe</summary>

```yaml
{resolved_yaml(run.recipe).rstrip()}
```

</details>

## Use

```python
from transformers import AutoModelForImageTextToText, AutoProcessor

processor = AutoProcessor.from_pretrained(PATH)
model = AutoModelForImageTextToText.from_pretrained(PATH)
question = {{"type": "text", "text": "What is in the picture?"}}
messages = [{{"role": "user", "content": [{{"type": "image"}}, question]}}]
prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
inputs = processor(images=image, text=prompt, return_tensors="pt")
print(processor.decode(model.generate(**inputs)[0], skip_special_tokens=True))
```

## Limits

Not evaluated here. The licences of the data, of the vision encoder and of the language model apply.
"""


def _origin(run: Run) -> str:
    if not run.recipe.stages:
        return "A LLaVA-style model, converted by megatron_sts and not trained by it."
    if not any(stage.skip or _compresses(stage) for stage in run.recipe.stages):
        return "A LLaVA-style model trained with megatron_sts, with every layer and every visual token in every step."
    return """A LLaVA-style model trained with megatron_sts and the Sparse Training Scheme (arXiv 2509.18150).
The scheme makes training cheaper only: this model is dense, it uses all of its layers and all visual tokens."""


def _compresses(stage: StageConfig) -> bool:
    return stage.compress is not None and stage.compress.strategy != "none"


def _training(run: Run) -> str:
    if not run.recipe.stages:
        return "None: these are the imported weights; a projector that came with none of them is random."
    rows = "\n".join(_stage_row(stage) for stage in run.recipe.stages)
    return f"""| stage | trains | data | template | length | global batch | learning rate | visual tokens | layers |
|---|---|---|---|---|---|---|---|---|
{rows}

{_saving(measured_savings(run))}"""


def _stage_row(stage: StageConfig) -> str:
    length = f"epochs: {stage.epochs:g}" if stage.steps is None else f"{stage.steps} steps"
    rates = ", ".join(f"{part} {rate:g}" for part, rate in stage.learning_rate.rates.items())
    cells = (
        stage.name,
        ", ".join(stage.trains),
        f"`{stage.data.train.name}`",
        stage.data.template,
        length,
        str(stage.batch.global_size),
        rates,
        f"compressed: {_settings(stage.compress)}" if stage.compress is not None and _compresses(stage) else "all",
        "; ".join(f"skipped: {_settings(skip)}" for skip in stage.skip) or "all",
    )
    return f"| {' | '.join(cells)} |"


def _settings(settings: BaseModel) -> str:
    """Every setting that does something, under the recipe's own names."""
    values = {name: value for name, value in settings.model_dump(mode="json").items() if value not in (None, [], 0)}
    return ", ".join(
        f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in values.items()
    )


def _saving(savings: list[StageSaving]) -> str:
    if not savings:
        return "What training cost was not recorded: the run's metrics.jsonl was not there at the export."
    rows = "\n".join(_saving_row(saving) for saving in savings)
    return f"""Measured, from the run's metrics.jsonl. "Saved" compares the FLOPs that were executed with those of the
same samples at every layer and every visual token, as computed from the model's sizes. The time is that of the steps
of this run; it was not compared with a dense run.

| stage | steps | FLOPs executed | FLOPs saved | visual tokens dropped | layer runs skipped | for visual tokens alone \
| hours | steps dropped |
|---|---|---|---|---|---|---|---|---|
{rows}"""


def _saving_row(saving: StageSaving) -> str:
    cells = (
        saving.stage,
        f"{saving.steps} of {saving.expected_steps}" if saving.steps < saving.expected_steps else f"{saving.steps}",
        f"{saving.flops_executed:.3e}",
        f"{1 - saving.flops_executed / saving.flops_dense:.1%}",
        f"{saving.visual_tokens_dropped:.1%}",
        f"{saving.layer_runs_skipped:.1%}",
        f"{saving.layer_runs_skipped_for_visual:.1%}",
        f"{saving.seconds / 3600:.3g}",
        str(saving.dropped_steps),
    )
    return f"| {' | '.join(cells)} |"
