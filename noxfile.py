"""The project's chores: `nox` runs the checks, `nox -s NAME` one of them."""

from __future__ import annotations

import shlex
import tomllib
from pathlib import Path

import nox

nox.options.default_venv_backend = "venv"
nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["lint", "types", "house", "tests", "smoke"]

PROJECT = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))


def _install(session: nox.Session, *arguments: str) -> None:
    session.install("--upgrade", "pip>=25.1")  # the first that knows --group
    session.install("-e", ".[reference]", "--group", "dev", *arguments)


@nox.session
def tests(session: nox.Session) -> None:
    """The whole test suite."""
    _install(session)
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session
def lowest(session: nox.Session) -> None:
    """The test suite on the oldest versions that pyproject.toml allows."""
    pins = [requirement.replace(">=", "==") for requirement in PROJECT["project"]["dependencies"]]
    constraints = Path(session.create_tmp()) / "lowest.txt"
    constraints.write_text("\n".join(pins), encoding="utf-8")
    _install(session, "--constraint", str(constraints))
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session
def gpu(session: nox.Session) -> None:
    """The tests that need an accelerator."""
    _install(session)
    # One after another: they share the device, and one fills its memory.
    session.run("python", "-m", "pytest", "-m", "gpu", "-n", "0", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Style and format."""
    session.install("ruff>=0.14")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")


@nox.session
def types(session: nox.Session) -> None:
    """Types, strictly, in source and tests."""
    _install(session)
    session.run("mypy")


@nox.session
def house(session: nox.Session) -> None:
    """Which module may import which."""
    _install(session)
    session.run("lint-imports")


@nox.session
def smoke(session: nox.Session) -> None:
    """What a user gets: the wheel, in an environment of its own, used from another folder."""
    session.install("build>=1.3")
    dist = Path(session.create_tmp()) / "dist"
    session.run("python", "-m", "build", "--wheel", "--outdir", str(dist))
    session.install("--force-reinstall", "--no-deps", *(str(wheel) for wheel in dist.glob("*.whl")))
    session.install(*PROJECT["project"]["dependencies"])
    session.chdir(session.create_tmp())
    session.run("vitbench", "flops", "swin_b")
    session.run("vitbench", "list", "swin")
    session.run("python", "-c", "import vitbench; vitbench.create_model('vit_demo', weights='pretrained')")
    session.run("vitbench", "sweep", "smoke", "--output", "smoke", "--resume")


@nox.session
def regress(session: nox.Session) -> None:
    """The catalog against results/baseline.json, and times against where HEAD left origin/main; `-- --update` remakes it."""
    _install(session)
    suite, baseline = "results/regress.toml", "results/baseline.json"
    session.run("vitbench", "check", suite, "--baseline", baseline, *session.posargs)


@nox.session
def results(session: nox.Session) -> None:
    """Remakes the files in results/."""
    _install(session)
    session.run("vitbench", "flops", "--all", "--output", "results/flops.csv")
    session.run("vitbench", "verify", "--output", "results/verify.csv")
    for line in Path("results/gallery.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("vitbench "):
            session.run(*shlex.split(line))
