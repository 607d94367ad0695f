"""Shelf of the architectures that timm lacks: one paper, one file, registered with timm when it is imported."""

import importlib

NATIVE = ("vitbench.models.compact",)


def register() -> None:
    """Imports every file of the shelf."""
    for module in NATIVE:
        importlib.import_module(module)
