"""The page for people, in a real browser if there is one."""

from __future__ import annotations

import os
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from browser import browsing
from conftest import ROOT
from PIL import Image
from serving import serving

STATIC = ROOT / "runtime/clf_serve/static"


def test_the_page_loads_nothing_from_elsewhere_and_runs_no_inline_script(service):
    page = service.request("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    addresses: list[str] = []

    class Parser(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            assert not [name for name, _ in attrs if name.startswith("on") or name == "style"]
            addresses.extend(value or "" for name, value in attrs if name in ("src", "href"))

    Parser().feed(page.body.decode())
    assert sorted(addresses) == ["data:,", "page.css", "page.js"]
    for name in ("page.css", "page.js"):
        assert service.request(f"/{name}").body == (STATIC / name).read_bytes()
        assert "://" not in (STATIC / name).read_text()
    assert "innerHTML" not in (STATIC / "page.js").read_text()


def test_the_page_is_there_without_a_token_and_nothing_else_of_the_device(model, tmp_path):
    (tmp_path / "tokens").write_text("correct-horse-battery")
    with serving(model, "--token-file", tmp_path / "tokens") as running:
        assert running.request("/").status == 200
        assert running.request("/v1/model").error == (401, "unauthorized")


@pytest.mark.parametrize(
    "path", ["/static/page.js", "/page.py", "/..%2fpage.py", "//etc/passwd", "/page.css/../page.py"]
)
def test_no_other_file_is_served(service, path):
    assert service.request(path).error == (404, "no-such-path")


TOP = "[...document.querySelectorAll('#top li')].map((row) => row.firstChild.textContent)"
HAS_RESULT = "document.querySelectorAll('#top li').length === 5"
OVERFLOWS = "document.documentElement.scrollWidth > window.innerWidth"


@pytest.mark.parametrize(("width", "height"), [(390, 844), (1280, 800)])
def test_a_person_classifies_images_in_a_browser(service, samples, tmp_path, width, height):
    with browsing() as browser:
        browser.open(f"http://127.0.0.1:{service.port}/", width, height)
        browser.wait_for("document.querySelectorAll('#card dt').length > 5")
        browser.choose_file("#file", samples[0])
        browser.wait_for(HAS_RESULT)
        assert browser.evaluate(TOP)[0] == samples[0].name[0]
        assert re.match(
            r"\d+ ms with the transfer of 0\.\d kB", browser.evaluate("document.querySelector('#message').innerText")
        )
        assert not browser.evaluate(OVERFLOWS)
        folder = Path(os.environ.get("CLF_SCREENSHOTS", tmp_path))
        browser.screenshot(folder / f"page-{width}.png")
        with Image.open(folder / f"page-{width}.png") as screenshot:
            assert screenshot.width == width

        drop = """
            const files = new DataTransfer();
            files.items.add(new File([new TextEncoder().encode("no image")], "a.png"));
            document.dispatchEvent(new DragEvent("drop", { dataTransfer: files, cancelable: true }));
        """
        browser.evaluate(drop)
        browser.wait_for("document.querySelector('#message').classList.contains('error')")
        assert "no supported image format" in browser.evaluate("document.querySelector('#message').innerText")
        assert browser.evaluate("document.querySelectorAll('#top li').length") == 0

        browser.evaluate("document.querySelector('#camera').click()")
        browser.wait_for("document.querySelector('#video').videoWidth > 0")
        browser.evaluate("document.querySelector('#shoot').click()")
        browser.wait_for(HAS_RESULT)
        assert not [line for line in browser.console if "Security Policy" in line or "exception" in line]


def test_the_page_asks_for_the_token(model, samples, tmp_path):
    (tmp_path / "tokens").write_text("correct-horse-battery")
    with serving(model, "--token-file", tmp_path / "tokens") as running, browsing() as browser:
        browser.open(f"http://127.0.0.1:{running.port}/", 390, 844)
        browser.wait_for("!document.querySelector('#token-row').hidden")
        browser.choose_file("#file", samples[0])
        browser.evaluate(
            "document.querySelector('#token').value = 'correct-horse-battery';"
            "document.querySelector('#token').dispatchEvent(new Event('change'))"
        )
        browser.wait_for(HAS_RESULT)
        assert browser.evaluate(TOP)[0] == samples[0].name[0]
