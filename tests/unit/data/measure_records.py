"""What a large data file takes when training starts: `python -m tests.unit.data.measure_records [--records N]`.

Makes up records of LLaVA's shape and a tokenizer for them; a table on standard output.
"""

import argparse
import gc
import json
import random
import tempfile
import time
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from megatron_sts.data import TEMPLATES, prepare_samples, read_samples

WORDS = (
    "the a of picture shows man woman red car street with two people standing near building in background there is "
    "large window dog cat running table food plate glass water sky tree mountain answer question single word phrase"
)
IMAGE = "picture.jpg"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--records", type=int, default=600_000)
    count = parser.parse_args().records
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        data, tokenizer = write_records(root, count), made_tokenizer()
        began, before = time.perf_counter(), _memory()
        samples = read_samples(data)
        read = time.perf_counter() - began
        gc.collect()
        held = _memory() - before
        assert len(samples) == count

        def start() -> float:
            began = time.perf_counter()
            arguments = (TEMPLATES["vicuna_v1"], tokenizer, None, root, 576, 4096, "error", 0)
            prepare_samples(root / "index.npz", data, *arguments)
            return time.perf_counter() - began

        first, later = start(), start()
        print(f"| | {count:,} records, {data.stat().st_size / 1e6:,.0f} MB |\n|---|---|")
        print(f"| memory for the records, MB | {held / 1e6:.0f} |")
        print(f"| reading and checking them, s | {read:.1f} |")
        print(f"| a first start, which does that and measures them, s | {first:.1f} |")
        print(f"| a later start, s | {later:.2f} |")


def write_records(root: Path, count: int) -> Path:
    """A data file of records of LLaVA's shape, every sixteenth without its picture, which is empty."""
    generator, vocabulary = random.Random(0), WORDS.split()
    (root / IMAGE).touch()

    def text(words: int) -> str:
        return " ".join(generator.choices(vocabulary, k=words))

    with (root / "data.json").open("w") as file:
        for number in range(count):
            turns = []
            for turn in range(generator.choice([1, 1, 2, 3, 4, 6])):
                question = ("" if turn or number % 16 == 0 else "<image>\n") + text(generator.randint(6, 20))
                turns.append({"from": "human", "value": question})
                turns.append({"from": "gpt", "value": text(generator.choice([2, 4, 10, 40, 90, 180]))})
            record = {"id": f"{number:012d}", "conversations": turns} | ({"image": IMAGE} if number % 16 else {})
            file.write(("," if number else "[") + json.dumps(record) + "\n")
        file.write("]")
    return root / "data.json"


def made_tokenizer() -> PreTrainedTokenizerBase:
    """A tokenizer that was trained on their words."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "</s>", "<pad>"]
    trained.train_from_iterator(
        [WORDS] * 100,
        trainers.BpeTrainer(vocab_size=600, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=trained,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens=["<image>"],
    )


def _memory() -> int:
    """Bytes of this process that are in memory."""
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) * 1024


if __name__ == "__main__":
    main()
