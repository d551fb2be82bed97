"""What became of every tensor of a conversion."""

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

REPORT_FILE = "tensors.json"
Kind = Literal["mapped", "carried", "fresh"]


@dataclass(frozen=True, slots=True)
class TensorRow:
    """One tensor of the result.

    kind: mapped (it is trained or run), carried (it never runs, and is kept for the way back), fresh (not of a source).
    sources: the tensors it was made of, under the names they have there.
    """

    tensor: str
    kind: Kind
    sources: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str


@dataclass(slots=True)
class TensorReport:
    """Rows of the result's tensors; left_out: a source's tensors that have no place in it, with the reason.

    warnings: what the user should know, a sentence each.
    """

    rows: list[TensorRow] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def write(self, file: Path) -> None:
        """Write the report as JSON."""
        file.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    def summary(self) -> str:
        """One line: how many tensors of each kind, and how many were left out for which reason."""
        kinds = Counter(row.kind for row in self.rows)
        reasons = Counter(self.left_out.values())
        parts = [f"{kinds[kind]} {kind}" for kind in ("mapped", "carried", "fresh")]
        parts += [f"{count} left out ({reason})" for reason, count in reasons.items()]
        return ", ".join(parts)
