"""The whole way of LAION: a table of links, the true img2dataset, a web server with good and bad manners, shards, records.

Installing img2dataset needs a package registry; where there is none these tests are skipped by name.
"""

import io
import json
import os
import socket
import struct
import subprocess
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image

from artgpt4.data import public
from artgpt4.data.laion import (
    filter_metadata, img2dataset_command, img2dataset_environment, kind_of_loss, link_report, run_img2dataset)
from artgpt4.data.shards import read_shards
from artgpt4.data.stream import ShardStream
from artgpt4.profile import InputError, Source, load_profile


def picture(size=(300, 200), format="JPEG") -> bytes:
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert("RGB").save(buffer, format)
    return buffer.getvalue()


class Manners(BaseHTTPRequestHandler):
    "Answers as its path says."

    asked: list[tuple[str, str]] = []

    def do_GET(self):
        name = self.path.split("/")[-1]
        self.asked.append((name, self.headers["User-Agent"]))
        if name.startswith("404"):
            return self.send_error(404)
        if name.startswith("slow"):
            time.sleep(6)
        if name.startswith("reset"):  # hang up in the middle of it all
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return self.connection.close()
        body = b"<html>this domain is for sale</html>" if name.startswith("page") else picture()
        body = picture((2000, 700), "PNG") if name.startswith("large") else body
        self.send_response(200)
        directive = {"noai": "noai", "named": "img2dataset: noai", "other": "otherbot: noai"}.get(name.split(".")[0])
        if directive:
            self.send_header("X-Robots-Tag", directive)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture(scope="session")
def environment() -> Path:
    try:
        return img2dataset_environment()
    except InputError as e:
        if "cannot install img2dataset" not in str(e):
            raise
        pytest.skip(f"img2dataset cannot be installed here: {e}")


@pytest.fixture(scope="module")
def web():
    os.environ["no_proxy"] = "127.0.0.1"
    server = ThreadingHTTPServer(("127.0.0.1", 0), Manners)
    server.handle_error = lambda *_: None  # clients that hang up are part of it
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def write_parquet(environment: Path, path: Path, rows: list[dict], drop: tuple = ()) -> None:
    "LAION's columns, written by pyarrow over there: names and types as in laion2B-en-aesthetic."
    program = """
import json, sys, pyarrow as pa, pyarrow.parquet as pq
rows, path, drop = json.load(sys.stdin), sys.argv[1], sys.argv[2].split()
types = dict(URL=pa.string(), TEXT=pa.string(), WIDTH=pa.float64(), HEIGHT=pa.float64(), similarity=pa.float64(),
             hash=pa.int64(), punsafe=pa.float32(), pwatermark=pa.float32(), aesthetic=pa.float32())
table = pa.table({k: pa.array([r.get(k) for r in rows], t) for k, t in types.items() if k not in drop})
pq.write_table(table, path, row_group_size=7)
"""
    path.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run([environment / "bin/python", "-I", "-c", program, path, " ".join(drop)], input=json.dumps(rows), text=True, check=True)


def row(url, text="a picture", **scores) -> dict:
    return dict(URL=url, TEXT=text, WIDTH=300.0, HEIGHT=200.0, similarity=0.31, hash=7, punsafe=0.01, pwatermark=0.1, aesthetic=7.2) | scores


GOOD = ["good1.jpg", "good2.jpg", "large.png", "other.jpg"]
LOST = {"404.jpg": "HTTP 404", "slow.jpg": "timed out", "reset.jpg": "connection lost", "page.jpg": "no picture",
        "noai.jpg": "opted out", "named.jpg": "opted out"}


@pytest.fixture(scope="module")
def rows(web):
    never = [row(f"{web}/unsafe.jpg", punsafe=0.9), row(f"{web}/marked.jpg", pwatermark=0.95), row(f"{web}/empty.jpg", ""),
             row(f"{web}/none.jpg", None), row("ftp://127.0.0.1/x.jpg"), row(None), row(f"{web}/unrated.jpg", punsafe=None)]
    names = [*GOOD, *LOST]
    return [row(f"{web}/{name}", f"Bild Nº {i}, “{name}”") for i, name in enumerate(names)] + never


@pytest.fixture(scope="module")
def downloaded(environment, rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("laion")
    write_parquet(environment, folder / "source/part-00000.snappy.parquet", rows[:9])
    write_parquet(environment, folder / "source/part-00001.snappy.parquet", rows[9:])
    kept = filter_metadata(folder / "source", folder / "metadata", environment, rows_per_file=8)
    Manners.asked.clear()
    report = run_img2dataset(folder / "metadata", folder / "shards", environment, samples_per_shard=4, processes=1, threads=4,
                             timeout=2, retries=0)
    return folder, kept, report


def test_only_rows_that_may_be_used_are_taken(downloaded):
    folder, kept, _ = downloaded
    assert kept["kept"] == 10
    assert kept["dropped"] == {"punsafe over 0.5": 1, "pwatermark over 0.8": 1, "no caption": 2, "no http address": 2, "no punsafe": 1}
    assert kept["files"] == [8, 2]
    assert kept["columns"] == ["URL", "TEXT", "similarity", "hash", "punsafe", "pwatermark", "aesthetic"]
    asked = {name for name, _ in Manners.asked}
    assert asked == {*GOOD, *LOST}
    assert all("(compatible; img2dataset;" in agent for _, agent in Manners.asked)


def test_every_link_is_accounted_for(downloaded):
    _, _, report = downloaded
    assert (report["shards"], report["links"], report["lived"], report["unfinished"]) == (3, 10, 4, [])
    assert report["lost"] == {"opted out": 2, "HTTP 404": 1, "timed out": 1, "connection lost": 1, "no picture": 1}


def test_the_shards_are_read(downloaded):
    folder, _, _ = downloaded
    assert [p.name for p in sorted((folder / "shards").glob("*.tar"))] == ["00000.tar", "00001.tar", "00002.tar"]
    pairs = read_shards(folder / "shards/{00000..00002}.tar")
    found = {record.facts["url"].split("/")[-1]: record for record in pairs}
    assert sorted(found) == sorted(GOOD)
    assert dict(pairs.report.dropped) == {}
    assert found["good2.jpg"].text == "Bild Nº 1, “good2.jpg”"
    assert found["good1.jpg"].open().size == (300, 200)  # its smaller side is under 256: left as it was
    assert min(found["large.png"].open().size) == 256
    facts = found["good1.jpg"].facts
    assert facts["status"] == "success" and facts["punsafe"] == pytest.approx(0.01) and "exif" not in facts
    assert len(list(ShardStream(folder / "shards/*.tar"))) == 4
    strict = read_shards(folder / "shards/*.tar", max_unsafe=0.001)
    assert list(strict) == [] and strict.report.dropped["flagged unsafe (punsafe over 0.001)"] == 4


def test_a_second_run_asks_for_nothing(downloaded, environment):
    folder, kept, report = downloaded
    Manners.asked.clear()
    assert filter_metadata(folder / "source", folder / "metadata", environment, rows_per_file=8) == kept
    again = run_img2dataset(folder / "metadata", folder / "shards", environment, samples_per_shard=4, processes=1, threads=4)
    assert again == report
    assert Manners.asked == []


def test_an_unfinished_shard_is_fetched_again(downloaded, environment):
    folder, _, report = downloaded
    (folder / "shards/00002_stats.json").unlink()
    (folder / "shards/00002.tar").write_bytes(b"half a tar")
    assert link_report(folder / "shards")["unfinished"] == ["00002.tar"]
    Manners.asked.clear()
    again = run_img2dataset(folder / "metadata", folder / "shards", environment, samples_per_shard=4, processes=1, threads=4,
                            timeout=2, retries=0)
    assert again == report
    assert {name for name, _ in Manners.asked} == {"noai.jpg", "named.jpg"}


def test_shards_of_other_metadata_are_not_mixed(downloaded, environment, tmp_path):
    folder, _, _ = downloaded
    filter_metadata(folder / "source", tmp_path / "metadata", environment, max_unsafe=0.95)
    with pytest.raises(InputError, match="holds shards of other metadata"):
        run_img2dataset(tmp_path / "metadata", folder / "shards", environment)


def test_a_failing_img2dataset_is_one_line(downloaded, tmp_path):
    folder, _, _ = downloaded
    (tmp_path / "bin").mkdir()
    fake = tmp_path / "bin/img2dataset"
    for body, what in (("exit 3", "exit status 3, 2 of 2 shards missing"), ("echo shard 0 failed", "exit status 0, 2 of 2 shards missing")):
        fake.write_text(f"#!/bin/sh\n{body}\n")
        fake.chmod(0o755)
        with pytest.raises(InputError, match=f"{what}.*img2dataset.log.*run it again"):
            run_img2dataset(folder / "metadata", tmp_path / "out", tmp_path)
    assert "shard 0 failed" in (tmp_path / "out/img2dataset.log").read_text()


def test_the_pipeline_fetches_what_its_profile_names(environment, web, tmp_path, monkeypatch):
    table = tmp_path / "data/sources/laion/part-00000.snappy.parquet"
    write_parquet(environment, table, [row(f"{web}/{name}") for name in (*GOOD, "404.jpg")])
    smoke = load_profile("smoke")
    profile = replace(smoke, sources=dict(laion=Source("data/sources/laion", "", "")), corpora=replace(smoke.corpora, shard_size=2))
    (tmp_path / "params.yaml").touch()
    monkeypatch.chdir(tmp_path)  # the root of a repository
    monkeypatch.setattr(public, "img2dataset_environment", lambda: environment)
    shards, links = public.own_shards(profile)
    assert (links["shards"], links["lived"], links["lost"]) == (3, 4, {"HTTP 404": 1})
    public.lay_out_shards(shards, tmp_path / "out", validation=1)
    assert len(list(read_shards(tmp_path / "out/*/*.tar"))) == 4


def test_bad_metadata_is_named(environment, tmp_path):
    write_parquet(environment, tmp_path / "a/1.parquet", [row("http://127.0.0.1/1")], drop=("punsafe",))
    with pytest.raises(InputError, match="1.parquet has no column punsafe"):
        filter_metadata(tmp_path / "a", tmp_path / "out", environment)
    (tmp_path / "b.parquet").write_bytes(b"PAR1 cut off")
    with pytest.raises(InputError, match="b.parquet: cannot read the metadata"):
        filter_metadata(tmp_path / "b.parquet", tmp_path / "out", environment)
    assert not (tmp_path / "out").exists()


def test_a_limit_and_full_files(environment, tmp_path):
    rows = [row(f"http://127.0.0.1/{i}.jpg", punsafe=0.9 if i % 5 == 0 else 0.1) for i in range(50)]
    write_parquet(environment, tmp_path / "a.parquet", rows)
    result = filter_metadata(tmp_path / "a.parquet", tmp_path / "out", environment, limit=33, rows_per_file=10)
    assert (result["kept"], result["files"]) == (33, [10, 10, 10, 3])
    assert sorted(p.name for p in (tmp_path / "out").glob("*.parquet")) == [f"0000{i}.parquet" for i in range(4)]


def test_the_environment_holds_no_telemetry(environment):
    found = list(environment.glob("lib/python*/site-packages/wandb*"))
    assert [p.name for p in found] == ["wandb.py"]
    assert "Left out on purpose" in found[0].read_text()


def test_the_command_never_switches_anything_on():
    command = img2dataset_command("metadata", "shards", "environment", distributor="pyspark", image_size=224)
    options = dict(zip(command[1::2], command[2::2]))
    assert options["--enable_wandb"] == "False"
    assert json.loads(options["--disallowed_header_directives"]) == ["noai", "noimageai", "noindex", "noimageindex"]
    assert options["--distributor"] == "pyspark" and options["--image_size"] == "224"
    assert options["--incremental_mode"] == "incremental"


@pytest.mark.parametrize(("words", "kind"), [
    ("HTTP Error 429: Too Many Requests", "HTTP 429"), ("<urlopen error [Errno 111] Connection refused>", "connection lost"),
    ("<urlopen error [SSL: CERTIFICATE_VERIFY_FAILED]>", "certificate"), ("IncompleteRead(3 bytes read)", "connection lost"),
    ("<urlopen error [Errno -3] Temporary failure in name resolution>", "no such host"), ("Image decoding error", "no picture"),
    ("unknown url type: 'x'", "something else"), ("<urlopen error timed out>", "timed out")])
def test_kinds_of_loss(words, kind):
    assert kind_of_loss(words) == kind
