"""HTML and SVG whose text is escaped where it enters the page, so that no escape can be forgotten."""

from __future__ import annotations

import html


class Markup(str):
    """Text that is HTML already; any other text is escaped when it becomes part of an element."""


# Elements without content.
_VOID = frozenset(("img", "line", "meta", "rect", "br"))


def element(name: str, /, *children: str, **attributes: object) -> Markup:
    """Return an element.

    Args:
        name: The name of the element.
        children: Markup is inserted as it is, any other text is escaped.
        attributes: A trailing underscore is dropped, others become hyphens; None leaves an attribute out.

    Examples:
        >>> element("td", "<script>", class_="number")
        '<td class="number">&lt;script&gt;</td>'
    """
    rendered = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID:
        return Markup(f"<{name}{rendered}>" if name not in ("line", "rect") else f"<{name}{rendered}/>")
    return Markup(f"<{name}{rendered}>{join(*children)}</{name}>")


def join(*children: str) -> Markup:
    """Return markup one after another, with any other text escaped."""
    return Markup("".join(child if isinstance(child, Markup) else html.escape(child) for child in children))
