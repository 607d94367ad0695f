"""The street door: options in, one library call, rendering out. Nothing here imports torch before a command needs it.

Exit codes: 0 fine; 1 a check failed; 2 bad input; 3 some rows failed, the others were measured; 130 interrupted.
"""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

import vitbench
from vitbench.cli import analyze, catalog, count, measure, report, sweep
from vitbench.errors import VitbenchError
from vitbench.units import printable

BAD_INPUT = 2
INTERRUPTED = 130


class _Boundary(TyperGroup):
    """The one place where errors become text and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except VitbenchError as error:
            _say_error(str(error))
            raise typer.Exit(BAD_INPUT) from error
        except KeyboardInterrupt as error:
            _say_error("interrupted")
            raise typer.Exit(INTERRUPTED) from error


def _say_error(text: str) -> None:
    Console(stderr=True, highlight=False, soft_wrap=True).print(
        Text("Error: ", style="bold red") + Text(printable(text))
    )


app = typer.Typer(
    name="vitbench",
    cls=_Boundary,
    help="Measure vision transformers and look inside them.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
app.command("flops", rich_help_panel="Measure")(count.flops)
app.command("verify", rich_help_panel="Measure")(count.verify)
app.command("throughput", rich_help_panel="Measure", cls=measure.CompileCommand)(measure.throughput)
app.command("memory", rich_help_panel="Measure")(measure.memory)
app.command("max-batch", rich_help_panel="Measure")(measure.max_batch)
app.command("bench", rich_help_panel="Measure", cls=measure.CompileCommand)(measure.bench)
app.command("sweep", rich_help_panel="Measure")(sweep.sweep)
for name, command in {
    "embedding-filters": analyze.embedding_filters,
    "posemb-similarity": analyze.posemb_similarity,
    "position-bias": analyze.position_bias,
    "attn-distance": analyze.attn_distance,
    "attn-entropy": analyze.attn_entropy,
    "attn-rollout": analyze.attn_rollout,
    "token-similarity": analyze.token_similarity,
    "cka": analyze.cka,
    "receptive-field": analyze.receptive_field,
    "feature-maps": analyze.feature_maps,
    "analyze": analyze.analyze,
}.items():
    app.command(name, rich_help_panel="Look inside")(command)
app.command("plot", rich_help_panel="Report")(report.plot)
app.command("list", rich_help_panel="Catalog")(catalog.list_)
app.command("show", rich_help_panel="Catalog")(catalog.show)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"vitbench {vitbench.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


def main() -> None:
    """Runs the command line."""
    sys.exit(app())
