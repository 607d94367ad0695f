"""The door itself: what it imports, how fast it opens, completion, signals, full disks. In processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(sys.executable).parent / "vitbench"
HEAVY = ("torch", "timm", "pandas", "matplotlib", "numpy", "fvcore")


def python(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # type: ignore[call-overload,no-any-return]  # keyword arguments of many types
        [sys.executable, *arguments], capture_output=True, text=True, check=False, **options
    )


@pytest.mark.parametrize(
    "command",
    [
        ["--help"],
        ["list"],
        ["flops", "--help"],
        ["throughput", "--help"],
        ["sweep", "--help"],
        ["show", "swin_b"],
        ["plot", "--help"],
        ["--version"],
    ],
)
def test_a_light_command_imports_nothing_heavy(command: list[str]) -> None:
    code = (
        "import sys\nfrom vitbench.cli import app\n"
        f"try:\n    app({command!r})\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    done = python("-c", code)
    assert done.stderr.splitlines()[-1] == "[]"
    assert done.stdout


def test_no_help_imports_anything_heavy() -> None:
    code = (
        "import sys\nfrom vitbench.cli import app\n"
        "names = [one.name for one in app.registered_commands]\n"
        "for name in names:\n"
        "    try:\n        app([name, '--help'])\n    except SystemExit as end:\n        assert not end.code, name\n"
        f"print(len(names), [name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    done = python("-c", code)
    count, _, heavy = done.stderr.splitlines()[-1].partition(" ")
    assert int(count) >= 20
    assert heavy == "[]"


def processor_seconds(*command: str | Path) -> float:
    before = os.times()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


@pytest.mark.parametrize("command", [["--help"], ["list"]])
def test_a_light_command_is_quick(command: list[str]) -> None:
    """Against the import of torch, in turns: the seconds of a shared machine are now long, now short.

    They are 0.3 and 0.5 s, most of the latter the drawing of the catalog, where importing torch takes 2.1 s.
    """
    ours, torchs = zip(
        *(
            (processor_seconds(SCRIPT, *command), processor_seconds(sys.executable, "-c", "import torch"))
            for _ in range(3)
        ),
        strict=True,
    )
    assert min(ours) <= min(torchs) / 2


@pytest.mark.parametrize(("typed", "expected"), [("swin_", "swin_b"), ("cct", "cct_2_3x2_32"), ("vit_d", "vit_demo")])
def test_the_shell_completes_model_names(typed: str, expected: str) -> None:
    environment = os.environ | {
        "_VITBENCH_COMPLETE": "complete_bash",
        "COMP_WORDS": f"vitbench flops {typed}",
        "COMP_CWORD": "2",
    }
    done = subprocess.run([SCRIPT], env=environment, capture_output=True, text=True, check=True)
    assert expected in done.stdout.split()


def test_the_module_is_the_command() -> None:
    done = python("-m", "vitbench", "--version")
    assert done.stdout.startswith("vitbench ")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_behind_standard_output_is_one_sentence() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "vitbench", "list"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 2
    assert "Cannot write to standard output: No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "vitbench", "list"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as listing:
        assert listing.stdout is not None
        assert listing.stderr is not None
        listing.stdout.close()
        assert b"Traceback" not in listing.stderr.read()


def test_ctrl_c_ends_with_130_and_without_a_traceback() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "vitbench", "flops", "--all"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Whoever runs the tests in the background has them ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as counting:
        time.sleep(4)
        os.killpg(counting.pid, signal.SIGINT)
        _, said = counting.communicate(timeout=60)
    assert counting.returncode == 130
    assert "interrupted" in said
    assert "Traceback" not in said
