"""Between training checkpoints and Hugging Face models, and what is done with an exported model.

llama.py       the language model's tensors, megatron-core <-> Hugging Face, bitwise
names.py       which tensors a model has and what they are called where
training_checkpoint.py  reads a training checkpoint in one process
config.py, processor.py, card.py, shards.py   the parts of an exported directory
export.py      puts them together
verify.py      loads an exported directory as a user would
generate.py    answers to prompts about pictures
evaluation/    accuracy on questions with known answers
"""

from megatron_sts.hf.evaluation import Question, evaluate, read_questions
from megatron_sts.hf.export import ExportReport, export_checkpoint
from megatron_sts.hf.generate import Generator, Request
from megatron_sts.hf.llama import language_from_hf, language_to_hf
from megatron_sts.hf.verify import verify_export

__all__ = [
    "ExportReport",
    "Generator",
    "Question",
    "Request",
    "evaluate",
    "export_checkpoint",
    "language_from_hf",
    "language_to_hf",
    "read_questions",
    "verify_export",
]
