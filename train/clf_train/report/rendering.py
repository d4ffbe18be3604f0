"""Templates as text: escaping, number formats, and the policy that blocks every request of a page."""

from __future__ import annotations

import base64
import hashlib
from importlib import resources

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from clf_runtime.progress import format_duration
from clf_train.report.charts import format_percent

# The browser itself then blocks every request, and runs no script but those whose digests follow.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def environment(package: str = "clf_train.report") -> Environment:
    """Return the environment of a package's templates: text is escaped, and an undefined name is an error."""
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader("clf_train.report")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = format_percent
    environment.filters["duration"] = _format_duration
    environment.globals["script"] = read_script
    environment.globals["policy"] = format_policy
    return environment


def read_script(name: str) -> Markup:
    """Return a script of the templates' folder, to stand between script tags."""
    return Markup(resources.files("clf_train.report").joinpath("templates", name).read_text(encoding="utf-8"))


def format_policy(*scripts: str) -> Markup:
    """Return a Content-Security-Policy that allows these scripts of the templates' folder and no other."""
    digests = [
        base64.b64encode(hashlib.sha256(read_script(name).encode()).digest()).decode("ascii") for name in scripts
    ]
    allowed = "; script-src " + " ".join(f"'sha256-{digest}'" for digest in digests) if digests else ""
    return Markup(_POLICY + allowed)


def _format_duration(seconds: float) -> str:
    return format_duration(seconds).replace(" ", "\u00a0")
