"""A run's record, which grows part by part: what was measured is on the disk at once, and whole."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def grown(record: dict[str, Any] | None, part: dict[str, Any]) -> dict[str, Any]:
    """Return the record with what another part has measured; the first one's facts stay."""
    if record is None:
        return part
    refusals = [row for row in part["refusals"] if row not in record["refusals"]]
    return record | {
        "benchmarks": record["benchmarks"] + part["benchmarks"],
        "refusals": record["refusals"] + refusals,
    }


def save(record: dict[str, Any], path: Path) -> None:
    """Replace the file, so that whoever ends this process leaves the old one or the new one."""
    # pytest's parameters hold a printout of all competitors for each timing: nine tenths of the
    # file. What is read of them is in extra_info.
    benchmarks = [each | {"params": None} for each in record["benchmarks"]]
    fresh = path.with_suffix(".fresh")
    content = json.dumps(record | {"benchmarks": benchmarks}, indent=1)
    fresh.write_text(content, encoding="utf-8")
    os.replace(fresh, path)


def load(path: Path) -> dict[str, Any] | None:
    """Return what a part has left, or None if it has measured nothing."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def machine(document: dict[str, Any], device: str = "cpu") -> str:
    """Return the processor that a run was measured on, and how many of it, or the GPU."""
    about = document["machine_info"]
    if device == "cuda":
        return about.get("gpu") or "unknown GPU"
    processor = about.get("cpu", {}).get("brand_raw") or about.get("processor", "")
    return f"{processor or 'unknown processor'}, {about.get('processors', '?')} processors"


def commit(document: dict[str, Any]) -> tuple[str, bool]:
    """Return the commit that a run was measured at, and whether there were other changes."""
    about = document.get("commit_info") or {}
    return str(about.get("id", "unknown"))[:12], bool(about.get("dirty"))
