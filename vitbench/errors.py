"""Every error a user can meet, drawn as a tree.

The text of each is for the user: one sentence that names what was wrong, and what to do about it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


class VitbenchError(Exception):
    """The root of the tree; the command line prints its text and exits with 2."""


class UnknownName(VitbenchError):
    """A name that is on no list, with the names that come near it."""

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "") -> None:
        self.kind = kind
        self.name = name
        self.near = _near(name.lower(), sorted(set(known)))
        text = f"There is no {kind} named {name!r}."
        if self.near:
            text += f" Did you mean {' or '.join(self.near)}?"
        elif hint:
            text += f" {hint}"
        super().__init__(text)

    def __reduce__(self) -> tuple[object, ...]:
        # Errors travel between processes; the constructor's arguments are not those that Exception keeps.
        return _unpickle, (type(self), str(self), dict(self.__dict__))


def _near(name: str, known: Sequence[str]) -> tuple[str, ...]:
    """Gives up to four names: first two of which the name is a part, or that are its own rest, then those spelt like it."""
    # A part of some length: "16" or "vit" is part of too many.
    part = len(name) > 4
    whole = [one for one in known if part and (f"_{name}_" in f"{one}_" or name.endswith(f"_{one}"))]
    return tuple(dict.fromkeys([*whole[:2], *get_close_matches(name, known, n=4, cutoff=0.6)]))[:4]


class BadInput(VitbenchError):
    """An option, a file or a model's argument that cannot be used, and what was expected."""


class NoRows(BadInput):
    """A file that can be read, but is no result."""


class NotSupported(VitbenchError):
    """Something that a model does not have, why, and what to try instead."""


class NotDefined(NotSupported):
    """An analysis that has no meaning for a model: the reason, and which analyses have one.

    Attributes:
        reason: a clause, such as "its first layer is a convolution of features, not of pixels".
        instead: names of analyses to try.
    """

    def __init__(self, reason: str, *, instead: Sequence[str] = ()) -> None:
        self.reason = reason
        self.instead = tuple(instead)
        super().__init__(f"{reason}.{self.advice}")

    @property
    def advice(self) -> str:
        """What to try instead, as a sentence with a space before it; empty where there is nothing."""
        return f" Try: {', '.join(self.instead)}." if self.instead else ""

    def of(self, analysis: str, model: str) -> NotSupported:
        """Gives the error that a user reads."""
        return NotSupported(f"{analysis} is not defined for {model}: {self.reason}.{self.advice}")

    def __reduce__(self) -> tuple[object, ...]:
        return _unpickle, (type(self), str(self), dict(self.__dict__))


class CannotWrite(VitbenchError):
    """A file or folder that cannot be written."""


def _unpickle(kind: type[VitbenchError], text: str, state: dict[str, object]) -> VitbenchError:
    error = kind.__new__(kind)
    Exception.__init__(error, text)
    error.__dict__.update(state)
    return error


def one_line(error: BaseException) -> str:
    """Gives the first line of an error's text, with its kind and without its full stop: enough for a status note.

    A line that ends in a colon only announces the next, which then belongs to it.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    announced = next((number for number, line in enumerate(lines) if not line.endswith(":")), len(lines) - 1)
    first = " ".join(lines[: announced + 1])
    if isinstance(error, VitbenchError):
        return first
    return f"{type(error).__name__}: {first.removesuffix('.')}" if first else type(error).__name__
