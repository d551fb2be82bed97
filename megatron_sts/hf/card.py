"""The model card of an exported model: what it is and how it was trained, and no figure beyond that."""

from megatron_sts.config import Run, StageConfig


def model_card(name: str, run: Run, dtype: str) -> str:
    """README.md of the exported model, in Markdown."""
    vision, language = run.recipe.architecture.vision, run.recipe.architecture.language
    stages = "\n".join(_stage_row(stage) for stage in run.recipe.stages)
    versions = ", ".join(f"{package} {version}" for package, version in sorted(run.versions.items()))
    return f"""---
library_name: transformers
pipeline_tag: image-text-to-text
tags:
- llava
- megatron_sts
---

# {name}

A LLaVA-style model trained with megatron_sts and the Sparse Training Scheme (arXiv 2509.18150).
The scheme makes training cheaper only: this model is dense, it uses all of its layers and all visual tokens.

- Vision tower: {vision.family}, {vision.layers} layers of width {vision.hidden_size},
  images of {vision.image_size} px in patches of {vision.patch_size} px,
  feature layer {vision.feature_layer}, {run.recipe.architecture.visual_tokens} visual tokens an image
- Language model: {language.family}, {language.layers} layers of width {language.hidden_size},
  {language.attention_heads} heads in {language.query_groups} groups, {language.vocabulary_size} tokens
- Checkpoint: stage `{run.stage}`, step {run.step}; exported in {dtype}
- Trained in {run.recipe.precision} with seed {run.recipe.seed}
- Trained with: {versions or "versions not recorded"}

## Training

| stage | trains | data | template | length | global batch | learning rate | visual tokens | layers |
|---|---|---|---|---|---|---|---|---|
{stages}

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


def _stage_row(stage: StageConfig) -> str:
    length = f"{stage.epochs:g} epochs" if stage.steps is None else f"{stage.steps} steps"
    rates = ", ".join(f"{part} {rate:g}" for part, rate in stage.learning_rate.rates.items())
    tokens, layers = "all", "all"
    if stage.compress is not None and stage.compress.strategy != "none":
        kept = stage.compress.keep_tokens
        amount = f"{stage.compress.keep_ratio:g} of them" if kept is None else f"{kept} an image"
        tokens = f"{stage.compress.strategy}, {amount} kept"
    if stage.skip is not None:
        skip = stage.skip
        tilt = f"alpha {skip.alpha:g}, epsilon {skip.epsilon:g}"
        layers = f"skipped: {tilt}, by {skip.progress}, {skip.selection}"
    cells = (
        stage.name,
        ", ".join(stage.trains),
        f"`{stage.data.train.name}`",
        stage.data.template,
        length,
        str(stage.batch.global_size),
        rates,
        tokens,
        layers,
    )
    return f"| {' | '.join(cells)} |"
