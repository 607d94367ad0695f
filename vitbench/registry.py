"""Shelves: names that stand for code which is imported only when it is asked for.

So `--help`, `list` and completion never load torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from vitbench.errors import UnknownName


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing on a shelf: its name, the module that holds it, and one line of help."""

    name: str
    module: str
    summary: str


class Shelf:
    """An ordered set of entries of one kind."""

    def __init__(self, kind: str, *entries: Entry) -> None:
        self.kind = kind
        self._entries = {entry.name: entry for entry in entries}

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    @property
    def names(self) -> tuple[str, ...]:
        """The names on the shelf, in order."""
        return tuple(self._entries)

    def load(self, name: str) -> Any:
        """Imports the module behind a name.

        Raises:
            UnknownName: nothing on this shelf has that name.
        """
        if name not in self._entries:
            raise UnknownName(self.kind, name, self._entries, hint=f"Known are {', '.join(self._entries)}.")
        return importlib.import_module(self._entries[name].module)
