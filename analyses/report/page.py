"""Fills the templates (autoescaped, whatever the file's suffix) and locks the page down."""

from __future__ import annotations

import base64
import hashlib
from functools import lru_cache
from importlib import resources
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jinja2


def source(name: str) -> str:
    """The text of a file in this package's `templates` folder."""
    return resources.files(__package__).joinpath("templates", name).read_text(encoding="utf-8")


@lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FunctionLoader(source),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(name: str, **context: Any) -> str:
    """The template filled with the context; a name that the context lacks raises."""
    return _environment().get_template(name).render(**context)


def script(code: str) -> str:
    """JavaScript made to survive inside a <script> element: no carriage return, end tag or HTML comment."""
    code = code.replace("\r\n", "\n").replace("\r", "\n")
    return code.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def security_policy(scripts: list[str]) -> str:
    """A Content-Security-Policy under which the page loads nothing and runs these scripts only.

    'unsafe-eval' is for Vega, which compiles its expressions, and 'unsafe-inline' for Vega-Embed's style
    element.
    """
    digests = (base64.b64encode(hashlib.sha256(code.encode()).digest()).decode("ascii") for code in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-eval' {allowed}; "
        "base-uri 'none'; form-action 'none'"
    )
