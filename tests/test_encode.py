"""Encoding under SIGKILL and on a full disk, and what odd corpora do to it."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from artgpt4.data.records import Record
from artgpt4.encode import encode, empty_if_old
from artgpt4.features import Pictures, load_features, read_shard
from artgpt4.files import sha256
from artgpt4.model import VisualTokens, VisualTokensConfig
from artgpt4.profile import InputError
from artgpt4.studio.painter import paint, sample_artwork

MADE = dict(encoder="a" * 64, crops=1, seed=3, dtype="fp32")


class Eyes(VisualTokens):
    "Tiny eyes with fixed random weights that take `seconds` for a batch."

    seconds = 0.0

    def forward(self, pixel_values, **kwargs):
        time.sleep(self.seconds)
        return super().forward(pixel_values, **kwargs)


def make_eyes(seconds: float = 0.0) -> Eyes:
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
    vision = dict(image_size=32, patch_size=16, **sizes)
    eyes = Eyes(VisualTokensConfig(vision, dict(vocab_size=2, **sizes), num_query_tokens=4)).eval()
    eyes.seconds = seconds
    return eyes


def records_of(folder: Path) -> list[Record]:
    return [Record(path.stem, "a text", path) for path in sorted(folder.glob("*.jpg"))]


@pytest.fixture(scope="module")
def works(tmp_path_factory) -> Path:
    folder, rng = tmp_path_factory.mktemp("works"), np.random.default_rng(0)
    for i in range(12):
        paint(sample_artwork(rng), i, size=64).save(folder / f"{i:02}.jpg")
    return folder


def child(works: Path, out: Path, seconds: float, limit: str = "") -> subprocess.Popen:
    "Encode in a process of its own, two pictures a shard."
    code = (f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); from test_encode import *; {limit}\n"
            f"encode(make_eyes({seconds}), records_of(Path({str(works)!r})), {str(out)!r}, MADE, 2)")
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_killed_run_goes_on_and_ends_in_the_same_bytes(works, tmp_path, capsys):
    encode(make_eyes(), records_of(works), tmp_path / "whole", MADE, 2)
    for wanted in (1, 3, 5):  # shards there when the kill comes
        running = child(works, tmp_path / "killed", 0.3)
        while running.poll() is None and len(list((tmp_path / "killed").glob("[!.]*.safetensors"))) < wanted:
            time.sleep(0.01)
        os.kill(running.pid, signal.SIGKILL)
        assert running.wait() == -signal.SIGKILL
    there = len(list((tmp_path / "killed").glob("[!.]*.safetensors")))
    capsys.readouterr()
    encode(make_eyes(), records_of(works), tmp_path / "killed", MADE, 2)
    left = int(re.search(r"(\d+) of 12 pictures", capsys.readouterr().out)[1])
    assert left == 12 - 2 * there and left <= 2
    assert sha256(tmp_path / "killed") == sha256(tmp_path / "whole")


def test_a_full_disk_costs_one_line_and_no_finished_shard(works, tmp_path):
    "A limit on the size of files stands for the disk."
    encode(make_eyes(), records_of(works)[:4], tmp_path / "out", MADE, 2)
    running = child(works, tmp_path / "out", 0, "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))")
    errors = running.communicate()[1]
    assert running.returncode == 1 and "InputError" in errors.splitlines()[-1] and "free some disk" in errors
    left = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert len(left) == 2
    for name in left:
        read_shard(tmp_path / "out" / name)


def test_views_do_not_depend_on_order_or_company(works, tmp_path):
    records = records_of(works)
    encode(make_eyes(), records, tmp_path / "one", MADE, 5)
    encode(make_eyes(), records[::-1], tmp_path / "other", MADE, 7)
    one, other = (load_features(tmp_path / name, MADE) for name in ("one", "other"))
    for key in one.keys:
        found = [f.take([f.rows[key]] * 2, [0, 1])["qformer_features"] for f in (one, other)]
        torch.testing.assert_close(*found, atol=1e-5, rtol=1e-5)


def test_a_shard_in_which_nothing_can_be_decoded(works, tmp_path):
    records = [Record(f"bad{i}", "a text", f"no picture {i}".encode()) for i in range(3)] + records_of(works)
    report = encode(make_eyes(), records, tmp_path / "out", MADE, 2)
    assert (report.kept, dict(report.dropped)) == (12, {"unreadable image": 3})
    features, pictures = load_features(tmp_path / "out"), Pictures(records, 32, 1, 3)
    assert features.rows == pictures.rows and [len(s) for s in features.shards][:2] == [0, 1]
    seen = make_eyes()(**pictures.take(range(12), [1] * 12)).last_hidden_state
    torch.testing.assert_close(features.take(range(12), [1] * 12)["qformer_features"], seen, atol=1e-5, rtol=1e-5)


def test_missing_files_are_dropped_once_a_key(works, tmp_path):
    records = records_of(works)[:1] + [Record("gone", text, works / "gone.jpg") for text in "abc"]
    report = encode(make_eyes(), records, tmp_path / "out", MADE, 2)
    assert (report.kept, dict(report.dropped)) == (1, {"unreadable image": 1})


def test_bf16_halves_the_disk_and_reads_as_fp32(works, tmp_path):
    records, made = records_of(works), {**MADE, "dtype": "bf16"}
    encode(make_eyes(), records, tmp_path / "full", MADE, 12)
    encode(make_eyes(), records, tmp_path / "half", made, 12)
    full, half = load_features(tmp_path / "full"), load_features(tmp_path / "half", made)
    assert 2 * half.shards[0].nbytes == full.shards[0].nbytes
    assert half.values.dtype == torch.float32 and torch.equal(half.values, full.values.bfloat16().float())


def test_other_codes_features_are_not_trusted(tmp_path):
    folder, note = tmp_path / "features", tmp_path / "code"
    for said, stays in ((None, False), ("another", False), ("today's", True)):
        folder.mkdir()
        if said == "another":
            note.write_text(said)
        empty_if_old(folder, note)
        assert folder.exists() == stays


@pytest.mark.parametrize("spoil, told", [
    (lambda p: p.write_bytes(b""), "no sound shard of features"),
    (lambda p: p.write_bytes(p.read_bytes()[:-1]), "no sound shard of features"),
    (lambda p: p.unlink(), "no such file; run `dvc repro encode`"),
    (lambda p: (p.parent / "index.json").write_text("[]"), "no index of features"),
    (lambda p: (p.parent / "index.json").write_text("{"), "not JSON"),
])
def test_a_damaged_folder_is_told_in_one_line(works, tmp_path, spoil, told):
    encode(make_eyes(), records_of(works), tmp_path / "out", MADE, 12)
    spoil(next((tmp_path / "out").glob("*.safetensors")))
    with pytest.raises(InputError) as e:
        load_features(tmp_path / "out")
    assert told in str(e.value) and "\n" not in str(e.value)
