"""One HTML file that needs nothing else: all texts escaped, and a policy under which a browser fetches and runs nothing more.

The policy allows the page's own scripts and styles by their hashes, and pictures that are part of the page.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from vitbench.units import printable

MOST_ROWS = 5000
"""Further rows of a table are counted, not shown."""

_FOLDER = files("vitbench.drawing") / "templates"


def source(name: str) -> str:
    """Gives the text of a template, style or script."""
    return (_FOLDER / name).read_text(encoding="utf-8")


def page(template: str, *, scripts: Sequence[str] = (), styles: Sequence[str] = (), **values: Any) -> str:
    """Gives a whole page.

    Args:
        template: name of a file beside `page.html`, which it extends.
        scripts: texts of scripts, run in this order behind the page's content.
        styles: ids of empty style elements, which those scripts fill.
        values: what the template shows; whatever is not `Markup` is escaped.
    """
    style = source("page.css")
    # A closing tag would end the script for the browser, and with it the hash would be of another text.
    if any("</script" in script.lower() or "<!--" in script for script in scripts):
        raise ValueError("A script holds what would end it.")
    policy = (
        f"default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; style-src {_hash(style)} {_hash('')}; "
        f"script-src {' '.join(map(_hash, scripts)) or repr('none')}"
    )
    return _ENVIRONMENT.get_template(template).render(
        policy=Markup(policy),  # noqa: S704  # made here, of hashes
        style=Markup(style),  # noqa: S704  # our own
        styles=styles,
        scripts=[Markup(script) for script in scripts],  # noqa: S704  # looked through above
        **values,
    )


def capped(rows: Sequence[Any]) -> list[str]:
    """Gives the sentence on the rows of a table beyond `MOST_ROWS`; none where there are none."""
    return [f"The first {MOST_ROWS} of {len(rows)} rows."] if len(rows) > MOST_ROWS else []


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _finalized(value: Any) -> Any:
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


_ENVIRONMENT = Environment(
    loader=FunctionLoader(source),
    autoescape=True,
    undefined=StrictUndefined,
    finalize=_finalized,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_ENVIRONMENT.filters["longest_word"] = lambda text: max(map(len, str(text).split()), default=0)
