"""Talking as a user does it: the released template, commands in a process of their own, pipes, kills and Ctrl-C.

The template is compared with the released code's where the environment variable ARTGPT4_REFERENCE names the folder of
its outputs; without it that test is skipped, and where CI is set it fails instead.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from artgpt4.apps.chat import ASSISTANT, HUMAN, SEPARATOR, SYSTEM, Conversation, Decoding
from artgpt4.apps.describe import describe, find_pictures
from artgpt4.files import read_jsonl
from artgpt4.profile import load_profile
from artgpt4.stages import build
from artgpt4.studio.corpora import sample_paintings
from artgpt4.studio.painter import paint

ROOT = Path(__file__).resolve().parent.parent
ARTGPT4 = [sys.executable, "-c", "import sys; from artgpt4.cli import main; sys.exit(main())"]
GREEDY = Decoding(sample=False, max_new_tokens=24)
FOREVER = 600  # seconds: a run that hangs fails, a slow one does not


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    "The studio's untrained model, saved as any model is."
    home = tmp_path_factory.mktemp("model")
    for part in build(load_profile("studio", ROOT), "artgpt4", seed=1):
        part.save_pretrained(home)
    return home


@pytest.fixture(scope="module")
def speaker(folder):
    from artgpt4.apps.chat import load_model

    return load_model(folder)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    "A folder of twelve paintings, and a file that is none."
    home = tmp_path_factory.mktemp("pictures")
    for i, painting in enumerate(sample_paintings(1, "test", 12)):
        paint(painting.artwork, painting.seed).save(home / f"{i:02d}.png")
    (home / "05b.jpg").write_bytes(b"\xff\xd8\xff no picture")
    return home


def run(*words, **settings) -> subprocess.CompletedProcess:
    return subprocess.run([*ARTGPT4, *map(str, words)], cwd=ROOT, capture_output=True, text=True, timeout=FOREVER, **settings)


def test_the_template_is_the_released_one():
    folder = os.environ.get("ARTGPT4_REFERENCE")
    if not folder:
        say = pytest.fail if os.environ.get("CI") else pytest.skip
        say("ARTGPT4_REFERENCE is not set: no prompts of the released code to compare with")
    there = json.loads((Path(folder) / "chat.json").read_text())
    kept = json.loads((ROOT / "nbs/fixtures/chat.json").read_text())
    assert kept == {key: there[key] for key in kept}
    assert (SYSTEM, [HUMAN, ASSISTANT], SEPARATOR) == (there["system"], there["roles"], there["sep"])
    defaults = {"max_length": Decoding.context, "min_length": Decoding.min_new_tokens}
    assert {k: defaults.get(k, getattr(Decoding, k, None)) for k in there["answer_defaults"]} == there["answer_defaults"]
    picture = paint(sample_paintings(1, "test", 1)[0].artwork, 1, 64)
    talk = Conversation()
    talk.add_image(picture)
    talk.ask("What do you see?")
    assert [list(m) for m in talk.messages] == there["messages_after_first_ask"]
    assert talk.prompt() == there["prompt_round1"]
    talk.reply("A quiet harbour.")
    talk.ask("What is the mood?")
    assert talk.prompt() == there["prompt_round2"]
    talk.reply("Calm.")
    assert talk.prompt() == there["prompt_after_round2"]
    talk = Conversation()
    talk.ask("Hello")
    talk.add_image(picture)
    talk.add_image(picture)
    talk.ask("Compare.")
    assert talk.prompt() == there["prompt_text_first_then_two_images"]


def test_help_needs_nothing_heavy():
    code = "import sys; from artgpt4.cli import main, parser; print(parser().format_help()); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=FOREVER)
    assert done.returncode == 0, done.stderr
    assert all(f"\n    {name} " in done.stdout for name in ("describe", "chat", "demo"))


def test_a_killed_run_loses_nothing_but_the_batch_in_flight(folder, speaker, pictures, tmp_path):
    out, settings = tmp_path / "answers.jsonl", ["--model", folder, "--batch-size", "1", "--max-new-tokens", "24"]
    words = [*ARTGPT4, "describe", str(pictures), "--out", str(out), *map(str, settings)]
    with subprocess.Popen(words, cwd=ROOT, stderr=subprocess.DEVNULL) as running:
        end = time.monotonic() + FOREVER
        while not (out.is_file() and out.read_bytes().count(b"\n") >= 3):
            assert running.poll() is None and time.monotonic() < end
            time.sleep(0.01)
        running.send_signal(signal.SIGKILL)
    written = out.read_bytes().rpartition(b"\n")[0].split(b"\n")
    counts = describe(*speaker, find_pictures([pictures]), out, decoding=GREEDY, batch_size=1)
    assert counts["kept"] == sum(b'"answer"' in line for line in written) >= 2
    assert counts["bad"] == 1 and sum(counts.values()) == 13
    again = out.read_bytes()
    assert all(line in again for line in written if b'"answer"' in line)
    whole = tmp_path / "whole.jsonl"
    describe(*speaker, find_pictures([pictures]), whole, decoding=GREEDY, batch_size=1)
    assert sorted(map(str, read_jsonl(out))) == sorted(map(str, read_jsonl(whole)))


def test_a_folder_is_described_by_the_command(folder, pictures, tmp_path):
    out = tmp_path / "answers.jsonl"
    words = ["describe", pictures, "--model", folder, "--out", out, "--max-new-tokens", "8"]
    done = run(*words, "--prompt", "What is this?")
    assert done.returncode == 0, done.stderr
    assert "12 answered, 0 kept from before, 1 could not be read\nThe first of these: " in done.stdout
    rows = read_jsonl(out)
    assert [Path(row["image"]).name for row in rows if "error" in row] == ["05b.jpg"]
    assert {row["prompt"] for row in rows} == {"What is this?"}
    refused = run(*words, "--prompt", "What else?")
    assert refused.returncode == 2 and refused.stderr.splitlines()[-1].startswith("artgpt4: ")
    assert "give another --out, or delete it" in refused.stderr and "Traceback" not in refused.stderr
    assert read_jsonl(out) == rows


def test_a_conversation_comes_through_a_pipe(folder, pictures):
    lines = f"What do you see?\n\n/image {pictures / '01.png'}\n/image nowhere.png\nAnd now?\n"
    done = run("chat", pictures / "00.png", "--model", folder, "--max-new-tokens", 8, input=lines)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert said[0].startswith("/image PATH") and "nowhere.png: no such picture" in done.stdout
    assert len([line for line in said if line.strip()]) >= 4  # the help, an answer or two, a picture, a refusal
    assert "###" not in done.stdout and ">" not in done.stdout


def test_control_c_leaves_quietly(folder):
    words = [*ARTGPT4, "chat", "--model", str(folder)]
    with subprocess.Popen(words, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as p:
        assert p.stdout.readline().startswith("/image PATH")
        time.sleep(0.2)  # at the question
        p.send_signal(signal.SIGINT)
        _, complaints = p.communicate(timeout=60)
    assert p.returncode == 0 and "Traceback" not in complaints


def test_bad_input_is_one_line():
    done = run("chat", "--model", "nowhere")
    assert done.returncode == 2
    assert done.stderr.strip() == "artgpt4: nowhere: no such folder; give one that save_pretrained wrote"
