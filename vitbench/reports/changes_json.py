"""An object with every change, base units, null where there is no value."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from vitbench.changes import Change, Comparison, PartChange


def render(comparison: Comparison) -> str:
    """Gives a comparison as a JSON object; what is no finite number is null, and a difference is [before, after]."""
    found = {
        "base": comparison.base,
        "head": comparison.head,
        "verdicts": comparison.counts,
        "changes": comparison.changes,
        "differences": comparison.differences,
        "environment": comparison.environment,
        "notes": comparison.notes,
        "commands": comparison.commands,
    }
    # ASCII, since a text read from a damaged file may have half a surrogate pair, which no file can hold.
    return json.dumps(_plain(found), indent=2, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, Change | PartChange):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
