"""What every part is given: where its findings go, and at which sizes it runs. No torch."""

import json
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Size:
    """Sizes of all parts.

    checked: sizes of the language model of the checks. timed: overrides of the benchmark's recipe. layers: of the timed
    model; the first number that fits the device. precisions: changes to a recipe, by name. counted, repeated: those of
    them in which products are counted by the profiler, and whole runs are repeated.
    loss_steps: of each run whose losses are compared. plans, repeats, warm_up: of what is timed. lengths: how many
    lengths are met for the first time. held_steps: after which memory must not have grown. product: side of the
    matrices whose product is timed.
    """

    checked: Mapping[str, int]
    timed: tuple[str, ...]
    layers: tuple[int, ...]
    precisions: Mapping[str, Mapping[str, str]]
    counted: tuple[str, ...]
    repeated: tuple[str, ...]
    loss_steps: int
    plans: int
    repeats: int
    warm_up: int
    lengths: int
    held_steps: int
    product: int


_PRECISIONS = {
    "bf16": {"precision": "bf16"},
    "tensorwise": {"precision": "fp8"},
    "delayed": {"precision": "fp8", "fp8_recipe": "delayed"},
    "blockwise": {"precision": "fp8", "fp8_recipe": "blockwise"},
}
# Heads of 128, and every size a multiple of 128, as blockwise asks.
_CHECKED = {"hidden_size": 512, "ffn_hidden_size": 1408, "attention_heads": 4, "query_groups": 4, "layers": 8}
_TINY = {"hidden_size": 128, "ffn_hidden_size": 128, "attention_heads": 2, "query_groups": 2, "layers": 4}
SIZES = {
    # 18 bytes a parameter: 12 layers of 7B shapes take 49 GB beside 15 of activations.
    "gpu": Size(
        _CHECKED, (), (12, 8), _PRECISIONS, tuple(_PRECISIONS), tuple(_PRECISIONS)[:3], 300, 2, 2, 2, 10, 500, 8192
    ),
    "rehearsal": Size(
        _TINY,
        (
            "model.architecture.vision={family: clip, image_size: 56, patch_size: 14, hidden_size: 16, layers: 2, "
            "attention_heads: 2, ffn_hidden_size: 32, feature_layer: -2}",
            "model.architecture.language={family: llama, layers: 4, hidden_size: 64, ffn_hidden_size: 128, "
            "attention_heads: 4, query_groups: 4, vocabulary_size: 65}",
            "stages.align.batch={global: 4, micro: 2}",
            "stages.tune.batch={global: 4, micro: 2}",
            "stages.align.data.text_tokens=12",
            "stages.tune.data.text_tokens=20",
        ),
        (2,),
        _PRECISIONS,
        ("bf16",),
        ("tensorwise",),
        4,
        1,
        1,
        1,
        2,
        5,
        64,
    ),
}
"""By name: what a GPU runs, and what shows on a CPU that it would."""


@dataclass(frozen=True)
class Slot:
    """One run of some parts.

    out: where results go. scratch: where parts leave what only they read. size: of SIZES. overrides: of the timed
    recipe. began: by the clock, when it was asked for.
    """

    out: Path
    scratch: Path
    size_name: str = "gpu"
    overrides: tuple[str, ...] = ()
    began: float = field(default_factory=time.time)

    @property
    def size(self) -> Size:
        return SIZES[self.size_name]

    @property
    def rehearses(self) -> bool:
        return self.size_name == "rehearsal"

    @property
    def results(self) -> Path:
        """One json object a line, written as it is found."""
        return self.out / "results.jsonl"

    def seconds(self) -> float:
        """Since it began."""
        return time.time() - self.began

    def record(self, part: str, name: str, **values: Any) -> None:
        """Keep and print what a part has found."""
        line = json.dumps({"at": round(self.seconds(), 2), "part": part, "name": name, **values})
        with self.results.open("a") as file:
            # One write, so that processes side by side do not mix their lines.
            file.write(line + "\n")
        print(line, flush=True)

    def check(self, part: str, name: str, passed: bool, **values: Any) -> None:
        """Keep whether something is right, and by what."""
        self.record(part, name, passed=bool(passed), **values)

    @contextmanager
    def attempt(self, part: str, name: str) -> Iterator[None]:
        """What is raised inside is kept as a check that failed, and the part goes on."""
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            self.check(part, name, False, error=f"{type(error).__name__}: {error}"[:2000])

    def dumps(self) -> str:
        """For a process that is started with it."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def loads(cls, text: str) -> "Slot":
        values = json.loads(text)
        paths = {name: Path(values[name]) for name in ("out", "scratch")}
        return cls(**values | paths | {"overrides": tuple(values["overrides"])})


def read_results(path: Path) -> list[dict[str, Any]]:
    """The lines of a results file; one that was being written when its process ended is left out."""
    found = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found
