"""The model: a Hugging Face vision tower, a compressor, a projector and megatron-core's GPTModel, wired in mllm.py."""
