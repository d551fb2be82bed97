"""Tells models and sets of questions apart, so that answers are never mixed."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from megatron_sts.evaluation.questions import Question

_WHOLE_BYTES = 4 * 2**20
_BLOCKS, _BLOCK_BYTES = 64, 2**16
_DIGITS = 16


def model_fingerprint(model_dir: Path) -> str:
    """A name for what an exported model computes, the same wherever the directory lies.

    Small files count whole, large ones by their size and 64 blocks of 64 KiB spread evenly over them: a second's
    work at any size, and training moves every block. The model card does not count.
    """
    digest = hashlib.sha256()
    for file in sorted(model_dir.iterdir()):
        if file.is_file() and file.name != "README.md" and not file.name.startswith("."):
            size = file.stat().st_size
            digest.update(f"{file.name} {size}\n".encode())
            with file.open("rb") as content:
                if size <= _WHOLE_BYTES:
                    digest.update(content.read())
                else:
                    for block in range(_BLOCKS):
                        content.seek(block * (size - _BLOCK_BYTES) // (_BLOCKS - 1))
                        digest.update(content.read(_BLOCK_BYTES))
    return digest.hexdigest()[:_DIGITS]


def questions_fingerprint(questions: Sequence[Question]) -> str:
    """A name for what is asked, in order, and what is right."""
    asked = [
        [
            question.id,
            question.images,
            [(turn.role, turn.text) for turn in question.turns],
            question.answer,
            # Left out where there is none, as before there were any.
            *([] if question.system is None else [question.system]),
        ]
        for question in questions
    ]
    return hashlib.sha256(json.dumps(asked, ensure_ascii=False).encode()).hexdigest()[:_DIGITS]
