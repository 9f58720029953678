"""The built site: its links, and its pages in a browser. `python3 dev.py docs` runs this file.

It needs build/site, so it is not among the tests that `python3 dev.py test` collects.
"""

import functools
import shutil
import threading
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest

from tests import ROOT

SITE = ROOT / "build" / "site"
PAGES = {
    "start": "docs/index.html",
    "guide": "docs/guide/command.html",
    "reference": "docs/reference/generated/fastmlp.MLP.html",
    "gallery": "docs/examples/plot_early_stopping.html",
    "formulas": "docs/formulas.html",
    "inside": "docs/inside.html",
    "performance": "docs/performance.html",
    "questions": "docs/faq.html",
}
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
PHONE = {"width": 390, "height": 800}
# Fewer are hard to read on a phone.
SMALLEST_LETTERS = 14


class Page(HTMLParser):
    """What a page links to, what it loads, and what can be linked to in it."""

    def __init__(self, text):
        super().__init__()
        self.links, self.loaded, self.anchors = set(), set(), set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.anchors |= {given.get("id"), given.get("name")} - {None}
        if tag == "a" and given.get("href"):
            self.links.add(given["href"])
        elif tag == "link" and "stylesheet" in (given.get("rel") or "") or tag == "script":
            self.loaded.add(given.get("href") or given.get("src") or "")
        elif tag == "img":
            self.loaded.add(given["src"])


@pytest.fixture(scope="module")
def pages():
    """Return every page of the site by its path."""
    assert SITE.is_dir(), "build/site is not there: python3 dev.py docs builds it"
    # The theme leaves templates beside its files.
    paths = [path for path in SITE.rglob("*.html") if "_static" not in path.parts]
    found = {path: Page(path.read_text(encoding="utf-8")) for path in paths}
    assert len(found) > 50
    return found


def test_every_link_leads_somewhere(pages):
    count = 0
    for path, page in pages.items():
        for link in page.links:
            target, anchor = urldefrag(link)
            if "://" in target or target.startswith(("mailto:", "data:")):
                continue
            found = (path.parent / unquote(target)).resolve() if target else path
            assert found.exists(), f"{path.relative_to(SITE)} links to {link}"
            if anchor and found in pages:
                there = {anchor, unquote(anchor)} & pages[found].anchors
                assert there, f"{path.relative_to(SITE)} links to {link}"
            count += 1
    assert count > 1000


def test_nothing_is_loaded_from_elsewhere(pages):
    for path, page in pages.items():
        for each in page.loaded - {""}:
            assert "://" not in each and not each.startswith("//"), f"{path}: {each}"
            if not each.startswith("data:"):
                found = path.parent / unquote(each.partition("?")[0])
                assert found.exists(), f"{path}: {each}"


def test_every_name_has_a_page(pages):
    from tests.pages.test_reference import NAMES

    for name in NAMES:
        assert SITE / f"docs/reference/generated/fastmlp.{name}.html" in pages, name


def test_every_example_has_a_page_and_a_figure(pages):
    examples = sorted((ROOT / "docs" / "gallery").glob("plot_*.py"))
    assert examples
    for example in examples:
        page = pages[SITE / f"docs/examples/{example.stem}.html"]
        assert any(f"sphx_glr_{example.stem}_0" in each for each in page.loaded), example.stem


@pytest.fixture(scope="module")
def address():
    """Serve the site, and return its address."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Quiet, directory=str(SITE))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def browser():
    """Return a browser without a window."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as playwright:
        own = Path(playwright.chromium.executable_path)
        path = str(own) if own.exists() else next(filter(None, map(shutil.which, BROWSERS)), None)
        if path is None:
            pytest.skip(f"no browser is installed, of {', '.join(BROWSERS)}")
        # Root, as in a container, cannot make the sandbox.
        started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def opened(browser, address):
    """Return a function that opens a page, and the complaints of all that were opened."""
    complaints = []

    def open_page(path, viewport):
        page = browser.new_page(viewport=viewport)
        page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("requestfailed", lambda request: complaints.append(request.url))
        page.goto(f"{address}/{path}", wait_until="load")
        return page

    return open_page, complaints


BROKEN = """() => [...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)"""


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_whole_in_a_browser(opened, name):
    open_page, complaints = opened
    page = open_page(PAGES[name], {"width": 1300, "height": 900})
    # Pictures further down are loaded when they are scrolled to.
    page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
    page.wait_for_load_state("networkidle")
    assert page.evaluate(BROKEN) == []
    assert page.evaluate("document.querySelectorAll('h1').length") == 1
    assert complaints == []
    page.close()


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_readable_on_a_phone(opened, name):
    open_page, complaints = opened
    page = open_page(PAGES[name], PHONE)
    wide, letters = page.evaluate(
        "[document.documentElement.scrollWidth, "
        "parseFloat(getComputedStyle(document.querySelector('article p')).fontSize)]"
    )
    assert wide <= PHONE["width"] and letters >= SMALLEST_LETTERS
    assert complaints == []
    page.close()


def test_the_search_finds_a_class(opened):
    open_page, complaints = opened
    page = open_page("search.html?q=EarlyStopping", {"width": 1300, "height": 900})
    page.wait_for_selector("ul.search li a", timeout=20_000)
    assert "EarlyStopping" in page.inner_text("ul.search")
    assert complaints == []
    page.close()


def test_the_root_leads_to_the_start_page(opened):
    open_page, complaints = opened
    page = open_page("index.html", PHONE)
    page.wait_for_url("**/docs/index.html", timeout=10_000)
    assert complaints == []
    page.close()


def test_a_complaint_is_heard(opened):
    open_page, complaints = opened
    page = open_page(PAGES["start"], PHONE)
    page.evaluate("console.error('planted')")
    page.evaluate("document.body.appendChild(new Image()).src = '/no-such-picture.png'")
    page.wait_for_function(f"({BROKEN})().length == 1", timeout=10_000)
    assert "planted" in complaints and len(complaints) == 2
    page.close()
