"""Numbers as the table and the page of an evaluation show them."""

from __future__ import annotations

import math


def format_percent(share: float | None, digits: int = 2) -> str:
    """Return a share of 0..1 in percent; only exactly 1 reads 100, only exactly 0 reads 0.

    Examples:
        >>> [format_percent(share) for share in (0.9412, 1, 0.99999, 0.00001, None)]
        ['94.12 %', '100.00 %', '>99.99 %', '<0.01 %', '-']
    """
    if share is None:
        return "-"
    text, least = f"{100 * share:.{digits}f}", 10**-digits
    if share < 1 and text.startswith("100"):
        text = f">{100 - least:.{digits}f}"
    if share > 0 and float(text.lstrip(">")) == 0:
        text = f"<{least:.{digits}f}"
    return f"{text} %"


def format_interval(interval: tuple[float, float]) -> str:
    """Return the 95 % interval of a share, such as `90.0 to 97.3 %`; both ends are rounded outward."""
    low, high = math.floor(1000 * interval[0]) / 10, math.ceil(1000 * interval[1]) / 10
    return f"{low:.1f} to {high:.1f} %"


def format_points(difference: float) -> str:
    """Return a difference of two shares in percentage points, with its sign."""
    return f"{100 * difference:+.2f} pp" if difference else "0.00 pp"


def format_p_value(p_value: float) -> str:
    """Return a p-value, such as `p = 0.039` or `p < 0.001`."""
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.2g}"


def format_ms(milliseconds: float) -> str:
    """Return a duration with three significant digits."""
    return f"{milliseconds:,.0f} ms" if milliseconds >= 100 else f"{milliseconds:#.3g} ms"


def format_images(count: int) -> str:
    """Return a number of images."""
    return f"{count:,} image" if count == 1 else f"{count:,} images"


def one_line(text: str) -> str:
    """Return a path or a message on one line: what cannot be printed is escaped."""
    return text if text.isprintable() else ascii(text)[1:-1]


def shorten(text: str, length: int = 30) -> str:
    """Return a label on one line, at most `length` characters long."""
    text = one_line(text)
    return text if len(text) <= length else f"{text[: length - 1]}…"
