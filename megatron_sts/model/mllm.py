"""The multimodal language model of one pipeline chunk: tower, compressor, projector and merge before a GPTModel.

It only wires: visual_tokens.py has the way of the visual tokens to their ranks.
"""

from collections.abc import Sequence
from typing import Any

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.utils import sharded_state_dict_default
from torch import Tensor

from megatron_sts.data import Batch
from megatron_sts.model.logits import LogitsReader, ReadableGPTModel
from megatron_sts.model.packing import packed_parameters
from megatron_sts.model.projector import Projector
from megatron_sts.model.skippable_layer import hand_down_plan
from megatron_sts.model.text_rows import TextRows, text_rows
from megatron_sts.model.vision import VisionTower
from megatron_sts.model.visual_tokens import VisualTokens
from megatron_sts.parallel.chunk import take
from megatron_sts.parallel.sequence import Ranges, own_ranges
from megatron_sts.sts import StepPlan


class MultimodalModel(MegatronModule):
    """One pipeline chunk of the model; the first chunk also holds the tower and the projector.

    Checkpoint keys: the language model's are megatron-core's own, without a prefix; then `projector.` and
    `vision.` with the Hugging Face encoder's names.
    """

    def __init__(
        self,
        config: TransformerConfig,
        language: ReadableGPTModel,
        groups: ProcessGroupCollection,
        vision: VisionTower | None = None,
        projector: Projector | None = None,
        embedding_scale: float = 1.0,
    ):
        """embedding_scale: what word embeddings are multiplied with, before visual tokens take their places."""
        super().__init__(config=config)
        assert (vision is None) == (projector is None)
        self.language = language
        self.vision = vision
        self.projector = projector
        self.pg_collection = groups
        # Read by megatron-core's schedules and gradient finalisation through the chunk.
        self.pre_process = language.pre_process
        self.post_process = language.post_process
        self.vp_stage = language.vp_stage
        self.share_embeddings_and_output_weights = language.share_embeddings_and_output_weights
        self.model_type = language.model_type
        # Rounded as transformers does, to the type of the embeddings.
        self._embedding_scale = float(torch.tensor(embedding_scale, dtype=config.params_dtype))
        self._plan: StepPlan | None = None
        self.visual: VisualTokens | None = None
        if vision is not None and projector is not None:
            self.visual = VisualTokens(vision, projector, language, groups.tp_cp, groups.tp, config)

    def set_plan(self, plan: StepPlan) -> None:
        """Hand the step's plan down: to the layers, and to the selection of visual tokens."""
        self._plan = plan
        hand_down_plan(self.language.decoder.layers, plan)

    def set_input_tensor(self, input_tensor: Any) -> None:
        """Take the hidden states [s, b, h] from the previous pipeline stage (called by the schedules)."""
        self.language.set_input_tensor(input_tensor)

    def shared_embedding_or_output_weight(self) -> Tensor:
        """The tied embedding, whose gradients megatron-core sums over the first and the last stage."""
        return self.language.shared_embedding_or_output_weight()

    def text_rows(self, text: Sequence[Ranges], segments: Sequence[int]) -> TextRows:
        """Where this rank finds the text of a micro-batch; see `model.text_rows`."""
        gathered = self.language.decoder.layers[0].works_on_gathered_rows
        return text_rows(text, segments, self.config, self.pg_collection, gathered)

    def forward(
        self,
        batch: Batch | None,
        labels: Tensor | None = None,
        segments: Sequence[int] | None = None,
        text: TextRows | None = None,
        reader: LogitsReader | None = None,
    ) -> Tensor:
        """One micro-batch through this chunk.

        The batch holds whole sequences; s is what a context-parallel rank holds of them.
        1. First chunk: embed the text, select, project and merge the visual tokens of the own sequence chunk.
        2. Run the chunk's layers; those that the plan skips are the identity, or leave out their MLP for visual tokens.
        3. Last chunk: with labels [b, s] the loss per token [b, s], without the logits [b, s, V / t].
        Other chunks return hidden states [s, b, h] (s divided by t under sequence parallelism).
        segments: lengths of the samples that lie end to end in a micro-batch of one row: each attends to itself
        alone, with positions of its own. text: needed where the plan skips layers for visual tokens. reader: takes in
        the logits of the last chunk, where they become the loss.
        """
        embedded = None
        if self.pre_process:
            assert batch is not None
            embedded = self._embed(batch, segments)
        self.language.reader = reader
        return self.language(
            input_ids=None,
            position_ids=None,
            attention_mask=None,
            decoder_input=embedded,
            labels=labels,
            packed_seq_params=None if segments is None else packed_parameters(segments, self.pg_collection.cp.size()),
            # Contract: SkippableTransformerLayer takes it for what it is.
            extra_block_kwargs=None if text is None else {"attention_bias": text},
        )

    def _embed(self, batch: Batch, segments: Sequence[int] | None = None) -> Tensor:
        assert self._plan is not None and self.visual is not None
        context = self.pg_collection.cp
        whole = segments or (batch.tokens.size(1),)
        held = own_ranges(whole, context_rank=context.rank(), context_size=context.size())
        text = self.language.embedding(input_ids=take(batch.tokens, held), position_ids=None)
        if self._embedding_scale != 1.0:
            text = text * self._embedding_scale
        return self.visual.embed_into(text, batch, self._plan, segments)

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple = (), metadata: dict | None = None
    ) -> dict[str, Any]:
        """Sharded tensors of the chunk: by this module's own names, each with its checkpoint key (see the class)."""
        assert not prefix
        language = self.language.sharded_state_dict(sharded_offsets=sharded_offsets, metadata=metadata)
        state = {f"language.{name}": tensor for name, tensor in language.items()}
        if self.projector is not None and self.vision is not None:
            parts = (("projector.", "projector.", self.projector), ("vision.encoder.", "vision.", self.vision.encoder))
            for own_prefix, key_prefix, module in parts:
                sharded = sharded_state_dict_default(
                    module, key_prefix, sharded_offsets, metadata, tp_group=self.pg_collection.tp
                )
                state |= {f"{own_prefix}{name.removeprefix(key_prefix)}": tensor for name, tensor in sharded.items()}
        return state
