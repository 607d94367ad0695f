"""vitbench: measures vision transformers and looks inside them.

The public names are imported only when they are used (PEP 562), so that `import vitbench` costs nothing. The native models are
registered with timm when timm is there: at once if it has been imported, else as soon as it is.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import ModuleType

    from vitbench.build import create_model as create_model
    from vitbench.metrics.flops import count_flops as count_flops

__version__ = "0.1.0"

_PUBLIC = {"create_model": "vitbench.build", "count_flops": "vitbench.metrics.flops"}

__all__ = ["__version__", "count_flops", "create_model"]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _register() -> None:
    importlib.import_module("vitbench.models").register()


class _AfterTimm:
    """An import hook that lets the native models register themselves right after timm, once, and then goes."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name != "timm":
            return None
        # The hook stays until timm is imported: to ask where timm is, as others do to see whether it is there, is not that.
        others = (finder for finder in sys.meta_path if finder is not self)
        spec = next((found for finder in others if (found := finder.find_spec(name, None, None)) is not None), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module: ModuleType) -> None:
                execute(module)
                if self in sys.meta_path:
                    sys.meta_path.remove(self)
                _register()

            spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]  # of this one import
        return spec


if "timm" in sys.modules:
    _register()
else:
    sys.meta_path.insert(0, _AfterTimm())
