"""The demo as its visitors meet it: headless Chromium picks and uploads, asks twice, and meets another visitor.

Skipped by name where there is no Chromium or no Gradio. The studio's trained models answer where they are, untrained
ones elsewhere: what is checked here is the page.
"""

import contextlib
import importlib.util
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import browser

ROOT = Path(__file__).resolve().parent.parent
TRAINED = "import sys; from artgpt4.cli import main; sys.exit(main(['demo', '--port', '0']))"
UNTRAINED = """
from artgpt4.apps.demo import serve
from artgpt4.apps.looks import load_speakers
from artgpt4.profile import load_profile
serve(load_speakers(None, load_profile("studio"), ["artgpt4", "projection"], trained=False), port=0)
"""
SLOW = 120  # seconds until a wait is given up; on a free machine none takes ten


@pytest.fixture(scope="module")
def address():
    "The demo in a process of its own, on a free port of the loopback address."
    if importlib.util.find_spec("gradio") is None:
        pytest.skip("no gradio: `pip install artgpt4[demo]`")
    if not browser.find_chromium():
        pytest.skip("no Chromium: `apt-get install chromium`, or any Chrome on the PATH")
    code = TRAINED if list((ROOT / "results/studio/models").glob("*.safetensors")) else UNTRAINED
    running = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    line = running.stdout.readline()
    assert line.startswith("ArtGPT-4 talks at http://127.0.0.1:"), line
    yield line.split()[3]
    running.send_signal(signal.SIGINT)
    assert running.wait(60) == 0


class Visitor:
    "Someone at the page."

    def __init__(self, page: browser.Page, address: str):
        self.page, self.address = page, address
        page.size(1280, 1000)
        page.go(address)
        self.wait("!!document.querySelector('#ask') && document.querySelectorAll('#dozen .thumbnail-item').length === 12")

    def wait(self, condition: str) -> None:
        self.page.wait(condition, SLOW)

    def said(self, who: str, chat: int = 0) -> list[str]:
        "What stands in a dialogue: `user` or `bot`."
        return self.page.ask(f"[...document.querySelectorAll('.bubble-wrap')].slice({chat}, {chat + 1})"
                             f".flatMap(c => [...c.querySelectorAll('.message.{who}')].map(m => m.innerText.trim()))")

    def ask(self, question: str, answers: int) -> str:
        "Type a question, press the button, and read the answer; the feelings behind it are drawn when it is whole."
        self.page.ask("document.querySelector('#question textarea, #question input').focus()")
        self.page.call("Input.insertText", text=question)
        self.wait(f"document.querySelector('#question textarea, #question input').value === {question!r}")
        self.page.ask("document.querySelector('#ask').click()")
        chat = "document.querySelector('.bubble-wrap')"
        self.wait(f"{chat}.querySelectorAll('.message.bot').length === {answers} && !!document.querySelector('.bars')")
        said = self.said("bot")
        assert len(said) == answers and said[-1], said
        return said[-1]

    def pick(self, number: int) -> None:
        "Choose a painting of the dozen."
        source = "document.querySelector('#painting img').src"
        before = self.page.ask(source)
        self.page.ask(f"document.querySelectorAll('#dozen .thumbnail-item')[{number}].click()")
        self.wait(f"{source} !== {before!r}")

    def bring(self, path: Path) -> None:
        "Put a file into the page's place for files."
        root = self.page.call("DOM.getDocument")["root"]["nodeId"]
        field = self.page.call("DOM.querySelector", nodeId=root, selector="#bring input[type=file]")["nodeId"]
        self.page.call("DOM.setFileInputFiles", nodeId=field, files=[str(path)])

    def stays_here(self) -> bool:
        "Whether the page has asked no other address for anything."
        return [r for r in self.page.requests if not r.startswith((self.address, "data:", "blob:"))] == []


@pytest.fixture
def visitors(address):
    "A function that brings another visitor, with a browser of their own."
    with contextlib.ExitStack() as stack:
        yield lambda: Visitor(stack.enter_context(browser.opened()), address)


def test_a_visitor_picks_asks_twice_and_compares(visitors):
    visitor = visitors()
    visitor.pick(5)
    first = visitor.ask("What do you see?", 1)
    second = visitor.ask("What is the mood?", 2)
    assert visitor.said("user") == ["What do you see?", "What is the mood?"]
    assert visitor.said("bot") == [first, second] and "#" not in first + second
    names = visitor.page.ask("[...document.querySelectorAll('#second input')].map(i => i.value)")
    visitor.page.ask(f"document.querySelector('#second input[value={names[2]}]').click()")
    visitor.wait("document.querySelectorAll('.bubble-wrap').length === 2")
    visitor.ask("And this?", 3)
    visitor.wait("document.querySelectorAll('.bars').length >= 2")
    assert visitor.said("user", 1) == ["And this?"] and visitor.said("bot", 1)[0]
    visitor.pick(6)
    visitor.wait("document.querySelectorAll('.message').length === 0")
    assert visitor.stays_here() and visitor.page.complaints == []


def test_two_visitors_keep_their_dialogues_apart(visitors):
    one, other = visitors(), visitors()
    other.pick(7)
    answer = one.ask("What is this?", 1)
    assert other.said("user") == [] and other.said("bot") == []
    other.ask("Who painted it?", 1)
    again = one.ask("What is this?", 2)
    assert again == answer  # about its own painting still
    assert (one.said("user"), other.said("user")) == (["What is this?"] * 2, ["Who painted it?"])


def test_a_picture_is_taken_and_bombs_are_refused(visitors, tmp_path):
    visitor = visitors()
    Image.new("1", (30_000, 30_000)).save(tmp_path / "bomb.png")
    assert (tmp_path / "bomb.png").stat().st_size < 200_000
    (tmp_path / "heavy.png").write_bytes(bytes(9_000_000))
    (tmp_path / "words.png").write_text("not a picture")
    source = "document.querySelector('#painting img').src"
    before = visitor.page.ask(source)
    for name, reason in {"bomb": "bomb.png: more than 24 million pixels; scale it down", "heavy": "maximum",
                         "words": "words.png: no picture that can be read"}.items():
        visitor.bring(tmp_path / f"{name}.png")
        visitor.wait(f"document.body.innerText.includes({reason!r})")
    assert visitor.page.ask(source) == before
    visitor.page.go(visitor.address)  # a page without the refusals
    visitor.wait("!!document.querySelector('#bring input[type=file]')")
    Image.linear_gradient("L").convert("RGB").resize((900, 600)).save(tmp_path / "mine.jpg")
    before = visitor.page.ask(source)
    visitor.bring(tmp_path / "mine.jpg")
    visitor.wait(f"{source} !== {before!r}")
    visitor.wait("document.querySelector('#painting img').naturalWidth === 768")
    assert visitor.ask("What do you see?", 1)
    assert visitor.stays_here()
