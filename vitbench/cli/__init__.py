"""The street door: options in, one library call, rendering out. Nothing here imports torch before a command needs it.

Exit codes: 0 fine; 1 a check failed, or something regressed; 2 bad input; 3 some rows failed or are missing, the others were
measured; 4 it cannot be told (under --strict alone); 130 interrupted.
"""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

import vitbench
from vitbench.cli import ab, analyze, catalog, check, compare, count, doctor, measure, report, sweep
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
app.command("roofline", rich_help_panel="Measure")(measure.roofline)
app.command("memory", rich_help_panel="Measure")(measure.memory)
app.command("max-batch", rich_help_panel="Measure")(measure.max_batch)
app.command("bench", rich_help_panel="Measure", cls=measure.CompileCommand)(measure.bench)
app.command("sweep", rich_help_panel="Measure")(sweep.sweep)
app.command("ab", rich_help_panel="Judge", cls=measure.CompileCommand)(ab.ab)
app.command("doctor", rich_help_panel="Judge")(doctor.doctor)
app.command("embedding-filters", rich_help_panel="Look inside")(analyze.embedding_filters)
app.command("posemb-similarity", rich_help_panel="Look inside")(analyze.posemb_similarity)
app.command("position-bias", rich_help_panel="Look inside")(analyze.position_bias)
app.command("attn-distance", rich_help_panel="Look inside", cls=analyze.PathsCommand)(analyze.attn_distance)
app.command("attn-entropy", rich_help_panel="Look inside", cls=analyze.PathsCommand)(analyze.attn_entropy)
app.command("attn-rollout", rich_help_panel="Look inside", cls=analyze.PathsCommand)(analyze.attn_rollout)
app.command("token-similarity", rich_help_panel="Look inside", cls=analyze.PathsCommand)(analyze.token_similarity)
app.command("cka", rich_help_panel="Look inside", cls=analyze.PathsCommand)(analyze.cka)
app.command("receptive-field", rich_help_panel="Look inside", cls=analyze.PathsCommand)(analyze.receptive_field)
app.command("feature-maps", rich_help_panel="Look inside", cls=analyze.PathsCommand)(analyze.feature_maps)
app.command("analyze", rich_help_panel="Look inside", cls=analyze.PathsCommand)(analyze.analyze)
app.command("compare", rich_help_panel="Judge")(compare.compare)
app.command("check", rich_help_panel="Judge")(check.check)
app.command("plot", rich_help_panel="Report")(report.plot)
app.command("report", rich_help_panel="Report")(report.report)
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
