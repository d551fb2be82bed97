"""What the records of a run come to, to be read at a glance: summary.md, written anew after every part."""

from collections import defaultdict

from tests.gpu.figures import Record, determination, rows_of, table
from tests.gpu.slot import Slot, read_results


def write_summary(slot: Slot) -> str:
    """Write summary.md, whole or not at all; returns its text."""
    text = summary(read_results(slot.results))
    partial = slot.scratch / "summary.md"
    partial.write_text(text + "\n")
    (slot.out / "summary.md.partial").write_bytes(partial.read_bytes())
    (slot.out / "summary.md.partial").replace(slot.out / "summary.md")
    return text


def failures(slot: Slot) -> list[str]:
    """The checks that failed, and the parts that did not run to their end."""
    return _failures(read_results(slot.results))


def _failures(records: list[Record]) -> list[str]:
    found = [f"{record['part']}: {record['name']}" for record in records if record.get("passed") is False]
    found += [
        f"{record['part']}: {record['how']}"
        for record in records
        if record["name"] == "ended" and record["how"] != "done"
    ]
    return found


def summary(records: list[Record]) -> str:
    """Markdown: how parts ended, what failed, times and goals, then each part's figures."""
    lines = [f"Failed: {'; '.join(_failures(records)) or 'nothing'}", ""]
    lines += ["| part | ended | s | checks passed |", "|---|---|---|---|"]
    checks: dict[str, list[bool]] = defaultdict(list)
    for record in records:
        if "passed" in record:
            checks[record["part"]].append(record["passed"])
    ended = {record["part"]: record for record in records if record["name"] == "ended"}
    for part in dict.fromkeys([*(record["part"] for record in records)]):
        end = ended.get(part, {"how": "not ended"})
        passed = f"{sum(checks[part])} of {len(checks[part])}" if part in checks else ""
        lines.append(f"| {part} | {end['how']} | {end.get('seconds', '')} | {passed} |")
    ceilings = [record["flops_per_second"] for record in records if record["name"] == "product of matrices"]
    ceiling = ceilings[-1] if ceilings else None
    if rows := rows_of(records):
        lines += ["", table(rows, ceiling)]
    if ceiling:
        lines += ["", f"Matrix product of bf16, measured: {ceiling / 1e12:.3g} TFLOP/s"]
    if len(line := rows_of(records, "linear")) > 2:
        fit = determination([row.layers_skipped for row in line], [row.step_time_s for row in line])
        lines += ["", f"Step time against layers skipped: R² = {fit:.4f}"]
    lines += ["", *(text for record in records if (text := _line(record)))]
    return "\n".join(lines)


def _line(record: Record) -> str | None:
    """A record that is not in the tables."""
    match record["name"]:
        case "machine" | "model":
            layers = f"{record['layers']} layers at {record['stage']}: " if "layers" in record else ""
            return f"- {layers}{record['runs_on']}"
        case "waits of a step":
            return f"- waits of the host in a step: {record['number']} ({record['places']})"
        case "profile":
            busy = record["busy"] / record["seconds"]
            return f"- profiled step: {record['seconds']:.4f} s, busy {busy:.0%}, {record['synchronisations']} waits"
        case "host time":
            return (
                f"- host time of a layer, {record['precision']}, CUDA graphs {record['cuda_graphs']}: "
                f"{record['layer_ms']:.2f} ms"
            )
        case "one" | "new" | "again" | "rounded":
            return f"- steps of {record['distinct']} lengths ({record['name']}): {record['mean'] * 1e3:.1f} ms each"
        case "losses":
            return f"- losses, {record['precision']}: {', '.join(f'{mean:.4f}' for mean in record['means'])}"
        case "out of memory":
            return f"- out of memory with {record['layers']} layers at {record['stage']}"
        case "not run":
            return f"- {record['part']}: not run, {record['reason']}"
    if record.get("passed") is False:
        found = {key: value for key, value in record.items() if key not in ("at", "part", "name", "passed")}
        return f"- FAILED {record['part']}, {record['name']}: {found}"
    return None
