"""What `import vitbench` does and gives."""

from __future__ import annotations

import subprocess
import sys

import pytest


def run(*lines: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", "\n".join(lines)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_importing_vitbench_loads_nothing_heavy() -> None:
    run("import sys, vitbench", "assert not {'torch', 'timm', 'numpy'} & set(sys.modules)")


@pytest.mark.parametrize(
    "order",
    [("vitbench", "timm"), ("timm", "vitbench"), ("vitbench", "timm.models"), ("vitbench.parts.classifier", "timm")],
    ids=str,
)
def test_timm_knows_the_native_models_in_whatever_order_both_are_imported(order: tuple[str, str]) -> None:
    run(
        *(f"import {name}" for name in order),
        "import sys, timm, torch",
        "assert timm.is_model('cvt_13') and timm.is_model('t2t_vit_14')",
        "assert not [one for one in sys.meta_path if type(one).__module__ == 'vitbench']",
        "with torch.device('meta'): model = timm.create_model('cct_2_3x2_32')",
        "assert model(torch.zeros(1, 3, 32, 32, device='meta')).shape == (1, 10)",
    )


def test_to_ask_whether_timm_is_there_is_not_to_import_it() -> None:
    run(
        "import importlib.util, vitbench",
        "assert importlib.util.find_spec('timm') is not None",
        "import timm",
        "assert timm.is_model('cvt_13')",
    )


def test_other_imports_pass_by_the_hook() -> None:
    run("import vitbench, sys, json", "assert type(sys.meta_path[0]).__module__ == 'vitbench'", "import colorsys")
