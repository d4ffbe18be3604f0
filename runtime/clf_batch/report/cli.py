"""`clf-batch report`: what a run found, and how it differs from another run. Parses, calls, prints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from clf_runtime import __version__
from clf_runtime.command import say
from clf_runtime.errors import EXIT_OK

if TYPE_CHECKING:
    from clf_batch.report.compare import Comparison
    from clf_batch.report.counts import Counts


@click.command(
    "clf-batch report",
    epilog="""\b
Examples:
  clf-batch report results
  clf-batch report s3://results/2026 --format json
  clf-batch report results --compare old-results --html report.html

\b
Exit codes: 0 success, 2 usage error, 3 the run is not complete or damaged,
4 this machine cannot do it.""",
)
@click.argument("results", metavar="DIR|URL")
@click.option("--compare", metavar="DIR|URL", help="Also show which labels differ from those of another run.")
@click.option("--html", metavar="FILE", help="Also write a page, with the images most changed.")
@click.option("--format", "output_format", type=click.Choice(["text", "json"]), default="text", show_default=True)
@click.version_option(__version__, prog_name="clf-batch")
def command(results: str, compare: str | None, html: str | None, output_format: str) -> int:
    """Show what a complete run found: labels, scores and failures."""
    from clf_batch.report.compare import compare_runs
    from clf_batch.report.counts import count_results
    from clf_batch.report.parts import CompleteRun

    run = CompleteRun.open(results)
    old = None if compare is None else CompleteRun.open(compare)
    counts = count_results(run)
    comparison = None if old is None else compare_runs(old, run)
    if html is not None:
        from clf_batch.report.page import html_from_report
        from clf_runtime.files import atomic_write

        page = html_from_report(run, counts, old, comparison)
        atomic_write(Path(html), page.encode("utf-8", "backslashreplace"))
        say(f"clf-batch report: wrote {html}")
    if output_format == "json":
        click.echo(_json(counts, comparison))
    else:
        from clf_batch.report.text import describe_comparison, describe_run

        lines = [*describe_run(run, counts)]
        if old is not None and comparison is not None:
            lines += ["", *describe_comparison(old, comparison)]
        click.echo("\n".join(lines))
    return EXIT_OK


def _json(counts: Counts, comparison: Comparison | None) -> str:
    import json

    content = counts.to_dict()
    if comparison is not None:
        content["comparison"] = comparison.to_dict()
    return json.dumps(content, indent=1)
