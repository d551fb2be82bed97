"""What packing saves on records of LLaVA's shape: `python -m tests.parallel.measure_packing [benchmark options]`.

Makes up records, a tokenizer and a recipe, and runs `tools/benchmark.py --suite packing` on them.
"""

import sys
import tempfile
from pathlib import Path

from megatron_sts.config import resolved_yaml
from tests.tiny import tiny_recipe
from tests.unit.data.measure_records import made_tokenizer, write_records
from tools.benchmark import main

RECORDS = 4096


def measure(arguments: list[str]) -> int:
    """Run the benchmark; returns its exit code."""
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        made_tokenizer().save_pretrained(root / "tokenizer")
        # LLaVA-1.5's 576 visual tokens before a language model of two small layers.
        recipe = tiny_recipe(
            root,
            model__architecture__vision={"image_size": 336},
            model__architecture__language={
                "layers": 2,
                "hidden_size": 384,
                "ffn_hidden_size": 1024,
                "vocabulary_size": 640,
                "maximum_positions": 4096,
            },
            tune__data={"train": str(write_records(root, RECORDS)), "images": str(root), "max_tokens": 4096},
            tune__batch={"global": 16, "micro": 4},
            tune__epochs=1,
            tune__steps=None,
        )
        (root / "recipe.yaml").write_text(resolved_yaml(recipe))
        return main(["--config", str(root / "recipe.yaml"), "--suite", "packing", *arguments])


if __name__ == "__main__":
    sys.exit(measure(sys.argv[1:]))
