"""The report of `check_data`, to read."""

from typing import Any

from megatron_sts.data.sample import IMAGE_TOKEN
from megatron_sts.data.unread_keys import UnreadKey, unread_text
from megatron_sts.errors import shown

SHOWN_PROBLEMS = 5

_HEADINGS = {
    "bad_records": "records that cannot be read",
    "repeated_ids": "ids that stand in several records (allowed; reports by id are then ambiguous)",
    "images": "images that cannot be used",
    "cannot_be_encoded": "records that the template and the tokenizer cannot write",
    "without_supervision": "records of which nothing would be learnt",
    "too_long": "records longer than max_tokens",
}


def check_text(report: dict[str, Any], shown: int = SHOWN_PROBLEMS) -> str:
    """Counts, lengths, and the first problems of each kind."""
    images, turns = report["images"], report["turns"]
    bad_files = "" if images["bad_files"] is None else f", {images['bad_files']:,} of them cannot be used"
    inside = f" and {images['embedded']:,} inside the records" if images["embedded"] else ""
    lines = [
        f"{report['data']}: {report['records']:,} records, {report['usable']:,} of them usable",
        f"images: {images['named']:,} named, {images['files']:,} files{inside}{bad_files}; at most "
        f"{images['most_in_a_record']} in a record, {report['text_only']:,} records without",
    ]
    if turns is not None:
        lines.append(f"turns: {turns['mean']} on average, at most {turns['max']}")
    if report["lengths"] is not None:
        lines += _length_lines(report["lengths"])
    if report["unread_keys"]:
        lines.append(unread_text([UnreadKey(**key) for key in report["unread_keys"]]))
    if "max_bad_records" in report and report["bad"]:
        allowed = report["max_bad_records"]
        ends = "training sets them aside" if report["bad"] <= allowed else "training stops there"
        lines.append(f"bad records: {report['bad']:,}; data.max_bad_records allows {allowed:,} of them: {ends}")
    for kind, problems in report["problems"].items():
        if problems:
            lines.append(f"{len(problems):,} {_HEADINGS[kind]}:")
            lines += [f"  {_problem(problem)}" for problem in problems[:shown]]
            if len(problems) > shown:
                lines.append(f"  ... and {len(problems) - shown:,} more (all of them with --json)")
    return "\n".join(lines)


def _length_lines(lengths: dict[str, Any]) -> list[str]:
    rows = {
        "text": lengths["text"],
        "learnt": lengths["supervised"],
        f"with {lengths['visual_tokens']} an image": lengths["before_compression"],
    }
    if lengths["kept_tokens"] != lengths["visual_tokens"]:
        rows[f"compressed to {lengths['kept_tokens']}"] = lengths["after_compression"]
    width = max(map(len, rows))
    lines = [f"tokens ({lengths['template']})".ljust(width + 2) + "    mean     p50     p99     max"]
    for name, spread in rows.items():
        values = "".join(f"{spread[key]:>8}" for key in ("mean", "p50", "p99", "max"))
        lines.append(f"  {name:{width}}{values}")
    if lengths["image_token_added"]:
        lines.append(f"tokenizer: has no {IMAGE_TOKEN}; it was added for this check, as by tools/convert.py import")
    too_long = lengths["too_long"]
    if too_long["records"] and too_long["policy"] != "error":
        lines.append(
            f"too_long: {too_long['policy']} cuts {too_long['cut']:,} records at {lengths['max_tokens']} tokens, drops "
            f"last turns of {too_long['without_last_turns']:,} and sets {too_long['set_aside']:,} aside"
        )
    if lengths["training"] is not None:
        shares = ", ".join(f"{name} {share:.1%}" for name, share in lengths["training"]["padding"].items())
        distinct = lengths["training"]["distinct_lengths"]
        lines.append(
            f"training: {lengths['training']['steps']:,} steps over what is left; padding with {shares}; "
            f"{distinct['rounded']} distinct lengths of up to 1,000 steps ({distinct['unrounded']} without rounding)"
        )
    return lines


def _problem(problem: dict[str, Any]) -> str:
    place = f"record {problem['record']}" if "record" in problem else ""
    name = "" if problem["id"] is None else f"id {shown(problem['id'])}"
    found = problem.get("problem") or (f"{problem['tokens']} tokens" if "tokens" in problem else "")
    where = ", ".join(part for part in (place, name) if part)
    return f"{where}: {found}" if found else where
