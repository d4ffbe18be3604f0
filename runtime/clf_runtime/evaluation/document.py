"""The frame of a page: one HTML file that needs no network and no other file."""

from __future__ import annotations

from importlib import resources

from clf_runtime.evaluation.markup import Markup, element

# The browser itself then blocks every request.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def html_document(title: str, *content: str) -> str:
    """Return a page as the text of an HTML file."""
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("title", title),
        element("style", Markup(resources.files(__package__).joinpath("page.css").read_text("utf-8"))),
    )
    return f"<!doctype html>\n{element('html', head, element('body', element('main', *content)), lang='en')}\n"


def draw_card(title: str, *content: str) -> Markup:
    """Return a part of a page, with its heading."""
    return element("section", element("h2", title), *content, class_="card")
