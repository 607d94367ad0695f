"""Shelf of the architectures that timm lacks or has no entry point for: one paper, one file."""

import importlib

NATIVE: tuple[str, ...] = ("vitbench.models.bit", "vitbench.models.compact")


def register() -> None:
    """Registers every model of the shelf with timm; a second call does nothing, since Python imports a module once."""
    for module in NATIVE:
        importlib.import_module(module)
