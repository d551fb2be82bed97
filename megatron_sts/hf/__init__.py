"""Between training checkpoints and Hugging Face models.

families/      one mapping table for each family of language models, read in both directions
language.py, names.py   which tensors a model has and what they are called where
read_config.py, source.py, parts.py, megatron_source.py   what is imported, read a tensor at a time
pieces.py, checkpoint_writer.py   the tensors of a new checkpoint, made when they are written
importer.py    puts them together; reconcile.py, tokenizer.py, image_processor.py: what belongs to them
training_checkpoint.py  reads a checkpoint in one process
config.py, processor.py, card.py (with saving.py), shards.py   the parts of an exported directory
export.py      puts them together
output.py, report.py    a directory that appears when it is whole; what became of every tensor
verify.py, parity.py    loads an exported directory as a user would, and compares its logits with the trained model's
"""

from megatron_sts.hf.export import ExportReport, export_checkpoint
from megatron_sts.hf.importer import ImportOptions, import_llava, import_megatron, import_pair
from megatron_sts.hf.verify import verify_export

__all__ = [
    "ExportReport",
    "ImportOptions",
    "export_checkpoint",
    "import_llava",
    "import_megatron",
    "import_pair",
    "verify_export",
]
