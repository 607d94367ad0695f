"""Shelf of the architectures that timm lacks or has no entry point for: one paper, one file."""

import importlib

NATIVE: tuple[str, ...] = (
    "vitbench.models.bit",
    "vitbench.models.coatnet",
    "vitbench.models.compact",
    "vitbench.models.cvt",
    "vitbench.models.mvit",
    "vitbench.models.pvt",
    "vitbench.models.t2t_vit",
    "vitbench.models.timesformer",
    "vitbench.models.vit_demo",
    "vitbench.models.vivit",
)


def register() -> None:
    """Registers every model of the shelf with timm; a second call does nothing, since Python imports a module once."""
    for module in NATIVE:
        importlib.import_module(module)
