"""The site as a visitor meets it: in a browser, from this computer alone. Skipped where there is no Chromium."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

import browser

ROOT = Path(__file__).resolve().parent.parent
HTML = ROOT / "docs" / "_build" / "html"


@pytest.fixture(scope="session")
def html():
    "The built site; built here if anything changed since the last time."
    done = subprocess.run([sys.executable, "docs/build.py"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.fail(f"the site does not build: {done.stderr.strip().splitlines()[0]}", pytrace=False)
    return HTML


@pytest.fixture(scope="session")
def address(html):
    with browser.served(html) as found:
        yield found


@pytest.fixture
def page(address):
    "A fresh browser, as a new visitor's."
    if not browser.find_chromium():
        pytest.skip("no Chromium: `apt-get install chromium`, or any Chrome on the PATH")
    with browser.opened() as opened:
        yield opened


class Anchors(HTMLParser):
    "The ids of a page, and what it links to or loads."

    def __init__(self, path: Path):
        super().__init__()
        self.ids, self.links, self.loads = {"", "top"}, [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.ids |= {found[k] for k in ("id", "name") if found.get(k)}
        if tag == "a" and found.get("href"):
            self.links.append(found["href"])
        if tag == "link" and "canonical" not in found.get("rel", ""):
            self.loads.append(found.get("href") or "")
        if tag in ("img", "script", "source", "iframe") and found.get("src"):
            self.loads.append(found["src"])


def test_every_internal_link_leads_somewhere(html):
    pages = {path: Anchors(path) for path in html.rglob("*.html")}
    dead = []
    for path, found in pages.items():
        for link in found.links + found.loads:
            if re.match(r"[a-z]+:", link):
                continue
            file, _, anchor = link.partition("#")
            target = (path.parent / unquote(file.partition("?")[0])).resolve() if file else path
            target = target / "index.html" if target.is_dir() else target
            known = pages[target].ids if target in pages else None
            if not target.is_file() or (known is not None and unquote(anchor) not in known):
                dead.append(f"{path.relative_to(html)}: {link}")
    assert not dead


def test_pages_load_nothing_from_elsewhere(html):
    far = [
        f"{p.relative_to(html)}: {load}"
        for p in html.rglob("*.html")
        for load in Anchors(p).loads
        if re.match(r"(https?:)?//", load)
    ]
    imported = re.compile(r"(?:url\(|@import )[\"']?((?:https?:)?//[^\"')]+)")
    for path in html.rglob("*.css"):
        far += [f"{path.relative_to(html)}: {url}" for url in imported.findall(path.read_text(encoding="utf-8"))]
    assert not far


@pytest.mark.parametrize("name", ["index.html", "adapter.html", "api/index.html"])
def test_a_visit_asks_no_other_computer_and_raises_no_error(page, address, name):
    page.go(f"{address}/{name}")
    page.wait("document.fonts.status === 'loaded'")
    assert [r for r in page.requests if not r.startswith((address, "data:", "blob:"))] == []
    assert page.complaints == []
    assert page.ask("document.fonts.check('16px \"Source Serif 4\"') && document.fonts.check('16px Inter')")


def test_the_front_page_shows_its_pictures(page, address):
    page.go(f"{address}/index.html")
    page.wait("[...document.querySelectorAll('article img')].every(i => i.complete)")
    widths = page.ask("[...document.querySelectorAll('article img')].map(i => i.naturalWidth)")
    assert len(widths) >= 2 and min(widths) > 100


def test_search_finds_the_adapter(page, address):
    page.go(f"{address}/search.html?q=adapter")
    page.wait("document.querySelectorAll('#search-results li').length > 0")
    page.wait("/^Search finished/.test(document.querySelector('.search-summary').textContent)")
    assert "adapter" in page.ask("document.querySelector('#search-results').textContent").lower()
    assert page.complaints == []


def test_mathematics_is_set(page, address):
    page.go(f"{address}/adapter.html")
    page.wait("document.querySelectorAll('mjx-container svg').length > 0")
    assert page.ask("document.querySelectorAll('mjx-merror, [data-mjx-error]').length") == 0
    assert page.ask("[...document.querySelectorAll('.math')].every(m => m.querySelector('mjx-container'))")


def test_the_dark_mode_button_changes_the_page(page, address):
    page.go(f"{address}/index.html")
    colour = "getComputedStyle(document.body).backgroundColor"
    button = "[...document.querySelectorAll('.theme-toggle')].find(b => b.offsetParent).click()"
    seen = set()
    for _ in range(3):  # automatic, light and dark
        seen.add(page.ask(colour))
        page.ask(button)
    assert len(seen) == 2


def test_a_telephone_need_not_scroll_sideways(page, address, html):
    page.size(390, 800)
    wide = []
    for path in sorted(html.rglob("*.html")):
        name = path.relative_to(html).as_posix()
        page.go(f"{address}/{name}")
        if page.ask("document.documentElement.scrollWidth") > 390:
            wide.append(name)
    assert not wide


def test_the_readme_is_what_the_index_renders_to():
    "Word for word; digit for digit too, as long as the results are the committed ones."
    code = "import sys; sys.path.insert(0, 'docs'); import readme; print(readme.readme(), end='')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    here, written = done.stdout, (ROOT / "README.md").read_text(encoding="utf-8")
    changed = subprocess.run(
        ["git", "status", "--porcelain", "results"], cwd=ROOT, capture_output=True, text=True
    ).stdout
    if changed:
        here, written = (re.sub(r"\d+", "0", text) for text in (here, written))
    assert here == written, "run `make readme`"
