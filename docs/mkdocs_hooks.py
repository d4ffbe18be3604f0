"""Put the documents of the repository root (README, ARCHITECTURE …) on the MkDocs site, with links that work there.

The same files are read on a Git host, where a link from README.md to the guide is `docs/commands.md` and one from
the guide to README.md is `../README.md`. On the site all pages are in one folder.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.structure.files import File, Files

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent

# Document of the repository root → page of the site.
PAGES = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "architecture.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add one page for each document of the repository root."""
    for document, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / document)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite the links between documents to links between pages of the site."""
    if "/" in page.file.src_uri:
        return markdown  # its links to pages in other folders are the same on the site
    return re.sub(r"\]\(([^)\s]+)\)", lambda link: f"]({site_link(link[1])})", markdown)


def site_link(target: str) -> str:
    """Return what a link target of the repository is called on the site."""
    path, hash_, anchor = target.partition("#")
    path = path.removeprefix("../").removeprefix("docs/")
    return PAGES.get(path, path) + hash_ + anchor
