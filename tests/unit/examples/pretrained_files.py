"""Tiny random models in the file formats that examples/smollm2 converts: a Llama as GGUF, a DINOv2 inside ONNX."""

import json
from pathlib import Path

import gguf
import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Dinov2Config, Dinov2Model, LlamaConfig, LlamaForCausalLM, PreTrainedModel

SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEXT = ["What color is the digit on the left?", "A red five and a blue two on white paper.", "Describe the image."]
_IN_GGUF = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def write_gguf(file: Path, layers: int = 2) -> LlamaForCausalLM:
    """A Llama with a tokenizer of bytes, as llama.cpp writes it with full weights; returns the model."""
    tokenizer = _byte_tokenizer()
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        tie_word_embeddings=True,
    )
    model = _random(LlamaForCausalLM(config))
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(layers)
    writer.add_context_length(256)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_freq_base(500.0)
    writer.add_rope_dimension_count(16)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(config.vocab_size)
    _add_tokenizer(writer, tokenizer)
    for name, tensor in model.state_dict().items():
        if name != "lm_head.weight":
            writer.add_tensor(_gguf_name(name), _rotated(name, tensor.numpy()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def write_onnx(file: Path, directory: Path) -> Dinov2Model:
    """A DINOv2 of two layers as the backbone of an exported graph; returns the model. directory: for scratch files."""
    config = Dinov2Config(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=1,
        mlp_ratio=2,
        image_size=42,
        patch_size=14,
        use_mask_token=False,
    )
    model = _random(Dinov2Model(config))
    model.save_pretrained(directory)
    stored, nodes = {}, []
    for name, tensor in load_file(directory / "model.safetensors").items():
        value = tensor.numpy()
        if name == "embeddings.position_embeddings":
            stored["onnx::Concat_1"], stored["onnx::Reshape_2"] = value[:, :1], value[:, 1:]
        elif value.ndim == 2:
            matrix, number = f"onnx::MatMul_{len(stored)}", len(nodes)
            stored[matrix] = np.ascontiguousarray(value.T)
            bias = f"backbone.{name.removesuffix('weight')}bias"
            nodes.append(helper.make_node("MatMul", ["x", matrix], [f"product_{number}"]))
            nodes.append(helper.make_node("Add", [bias, f"product_{number}"], [f"sum_{number}"]))
        else:
            stored[f"backbone.{name}"] = value
    # What else such a file holds.
    stored["decoder.final_conv.bias"] = np.zeros(64, dtype=np.float32)
    nodes.append(helper.make_node("Add", ["decoder.final_conv.bias", "x"], ["head"]))
    constants = [numpy_helper.from_array(value, name) for name, value in stored.items()]
    onnx.save(helper.make_model(helper.make_graph(nodes, "exported", [], [], constants)), file)
    return model


def _random(model: PreTrainedModel) -> PreTrainedModel:
    """Fresh norms are ones and fresh biases zeros, which would hide an exchange."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model.eval()


def _byte_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=SPECIAL_TOKENS, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXT * 4, trainer)
    return tokenizer


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: Tokenizer) -> None:
    vocabulary = sorted(tokenizer.get_vocab(), key=tokenizer.token_to_id)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(vocabulary)
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    kinds = [gguf.TokenType.CONTROL if token in SPECIAL_TOKENS else gguf.TokenType.NORMAL for token in vocabulary]
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def _gguf_name(name: str) -> str:
    if name == "model.embed_tokens.weight":
        return "token_embd.weight"
    if name == "model.norm.weight":
        return "output_norm.weight"
    _, _, layer, own = name.split(".", 3)
    return f"blk.{layer}.{_IN_GGUF[own.removesuffix('.weight')]}.weight"


def _rotated(name: str, value: np.ndarray) -> np.ndarray:
    """llama.cpp turns neighbouring numbers of a head, transformers those half a head apart."""
    if not name.endswith(("q_proj.weight", "k_proj.weight")):
        return np.ascontiguousarray(value)
    width = 16
    halves = value.reshape(-1, 2, width // 2, value.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(value.shape))
