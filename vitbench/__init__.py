"""vitbench: measures vision transformers and looks inside them.

The public names are imported only when they are used (PEP 562), so that `import vitbench` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
