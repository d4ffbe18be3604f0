"""Take the two screenshots of the README: the training report and a `clf-run` session in a terminal.

    $ make demo && python docs/screenshots.py

Both are real: the report is the one in the artifacts folder, and the terminal shows what the commands print when this
script runs them. Needs `clf-run` and Chromium on PATH; writes docs/images/report.png and docs/images/terminal.png.
"""

from __future__ import annotations

import html
import io
import shlex
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import click
from PIL import Image, ImageChops

IMAGES = Path(__file__).parent / "images"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
# Device pixels per CSS pixel: sharp on high-density displays, and both files stay below 120 kB.
SCALE = 1.5
COLORS = 256
# The top of the report: the key figures and the learning curves.
REPORT_SIZE = (1000, 920)
# Wide enough for 100 columns; the height is cropped to the text.
TERMINAL_SIZE = (920, 1200)

TERMINAL_PAGE = """<!doctype html>
<meta charset="utf-8">
<style>
  body {{ margin: 0; background: #0d1117; }}
  pre {{
    margin: 0; padding: 20px 24px; width: 100ch; white-space: pre-wrap; overflow-wrap: anywhere;
    font: 14px/1.45 "DejaVu Sans Mono", "Liberation Mono", monospace; color: #c9d1d9; tab-size: 8;
  }}
  b {{ color: #7ee787; font-weight: normal; }}
  i {{ color: #8b949e; font-style: normal; }}
</style>
<pre>{content}</pre>
"""


@dataclass(frozen=True)
class Shot:
    """A page to photograph and the window to do it in, in CSS pixels."""

    url: str
    size: tuple[int, int]
    is_cropped: bool = False  # cut the empty space below the content


@click.command()
@click.option("--artifacts", "-a", type=click.Path(path_type=Path), default="artifacts", show_default=True)
def command(artifacts: Path) -> None:
    """Write docs/images/report.png and docs/images/terminal.png from the model in ARTIFACTS."""
    browser = find_browser()
    report = artifacts / "report.html"
    if not report.is_file():
        raise click.ClickException(f"{report}: no such file; run `make demo` first")
    sessions = [["clf-run", f"{artifacts}/samples", "--top", "3"], ["clf-run", "--self-test"]]
    page = TERMINAL_PAGE.format(content="\n".join(run_session(session, artifacts) for session in sessions))
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        terminal = Path(folder, "terminal.html")
        terminal.write_text(page, encoding="utf-8")
        save(take(browser, Shot(report.resolve().as_uri(), REPORT_SIZE)), IMAGES / "report.png")
        save(take(browser, Shot(terminal.as_uri(), TERMINAL_SIZE, is_cropped=True)), IMAGES / "terminal.png")


def find_browser() -> str:
    """Return the path of Chromium. Raise ClickException if there is none."""
    for name in BROWSERS:
        found = shutil.which(name)
        if found:
            return found
    raise click.ClickException(f"no browser found (looked for {', '.join(BROWSERS)}); install Chromium")


def run_session(arguments: list[str], artifacts: Path) -> str:
    """Run a command and return its prompt line and its output as HTML, stderr in gray below stdout."""
    folder_option = [] if str(artifacts) == "artifacts" else ["-a", str(artifacts)]
    try:
        done = subprocess.run([*arguments, *folder_option], capture_output=True, text=True, check=True)
    except FileNotFoundError:
        raise click.ClickException(f"{arguments[0]}: not found on PATH; activate the environment first") from None
    except subprocess.CalledProcessError as error:
        raise click.ClickException(f"{shlex.join(arguments)}: exit code {error.returncode}: {error.stderr}") from None
    prompt = f"<b>$</b> {html.escape(shlex.join(arguments))}\n"
    # A non-breaking hyphen: the browser would wrap a line inside "1.9e-06".
    output = f"{html.escape(done.stdout)}<i>{html.escape(done.stderr)}</i>"
    return prompt + output.replace("-", "\N{NON-BREAKING HYPHEN}")


def take(browser: str, shot: Shot) -> Image.Image:
    """Open the page in a headless browser and return the screenshot."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "shot.png")
        flags = [
            f"--user-data-dir={folder}/profile",
            f"--force-device-scale-factor={SCALE}",
            f"--window-size={shot.size[0]},{shot.size[1]}",
            f"--screenshot={target}",
        ]
        done = subprocess.run([browser, *CHROMIUM_FLAGS, *flags, shot.url], capture_output=True, text=True, check=False)
        if not target.is_file():
            raise click.ClickException(f"{browser}: no screenshot of {shot.url}: {done.stderr.strip()}")
        image = Image.open(io.BytesIO(target.read_bytes())).convert("RGB")
    return crop_to_content(image) if shot.is_cropped else image


def crop_to_content(image: Image.Image) -> Image.Image:
    """Cut the rows below the last one that differs from the background, but for a margin."""
    background = Image.new("RGB", image.size, image.getpixel((0, 0)))
    box = ImageChops.difference(image, background).getbbox()
    margin = round(20 * SCALE)
    return image if box is None else image.crop((0, 0, image.width, min(image.height, box[3] + margin)))


def save(image: Image.Image, path: Path) -> None:
    """Write a PNG with a palette, which is a third of the size of one without."""
    # MEDIANCUT keeps large areas exact, which the other methods shift in color.
    image.quantize(COLORS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(path, optimize=True)
    click.echo(f"{path}: {image.width} x {image.height} pixels, {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    command()
