"""Downloads from servers that misbehave: what passes is waited for, what does not is one line, and nothing is half there."""

import errno
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections import namedtuple
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from pathlib import Path

import pytest
from mirror import Mirror, announce, cut, elsewhere, hang_up, noise, page, stall, status, trickle

from artgpt4.data import download
from artgpt4.data.download import RemoteFile, Retry, fetch
from artgpt4.data.transfer import writing
from artgpt4.profile import InputError

BODY = bytes(i * 7 % 251 for i in range(100_000))
DIGEST = hashlib.sha256(BODY).hexdigest()
OLD, NEW = "Sat, 01 Jan 2022 00:00:00 GMT", "Sun, 02 Jan 2022 00:00:00 GMT"
NAME = "images/wiki art.zip"


@pytest.fixture(autouse=True)
def loopback(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("ARTGPT4_OFFLINE", raising=False)


@pytest.fixture
def mirror():
    with Mirror({NAME: BODY}) as server:
        yield server


@pytest.fixture
def waits():
    return []


@pytest.fixture
def get(mirror, tmp_path, waits):
    "Fetch the one file, without waiting: its bytes, or the error."

    def get(sha256=DIGEST, size=None, **retry):
        file = RemoteFile(NAME, mirror.url(NAME), sha256, size)
        fetch([file], tmp_path, retry=Retry(**{"tries": 3, "seed": 0, "sleep": waits.append} | retry))
        assert left(tmp_path) == [NAME]
        return (tmp_path / NAME).read_bytes()

    return get


@pytest.fixture
def refused(get):
    "The one line of an error."

    def refused(*args, **kwargs) -> str:
        with pytest.raises(InputError) as e:
            get(*args, **kwargs)
        assert "\n" not in str(e.value)
        return str(e.value)

    return refused


def left(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


PART = "images/.wiki art.zip.part"
KEPT = [PART, f"{PART}.json"]


def test_a_good_server_is_asked_once(get, mirror):
    assert get() == BODY and get() == BODY
    assert mirror.starts() == [0]


def test_a_cut_is_gone_on_with_in_the_same_call(get, mirror, waits):
    mirror.then(NAME, cut(30_000), cut(30_000), cut(30_000))
    assert get(tries=2) == BODY  # each try gets further, so two in vain never come together
    assert mirror.starts() == [0, 30_000, 60_000, 90_000]
    assert len(waits) == 3 and all(0.5 <= w <= 1 for w in waits)


def test_a_cut_is_gone_on_with_in_the_next_call(get, refused, mirror, tmp_path):
    mirror.then(NAME, cut(40_000))
    text = refused(tries=1)
    assert "images/wiki art.zip: http://" in text and "broke off after 40000 of 100000 bytes" in text
    assert "40000 bytes are kept for the next call" in text and left(tmp_path) == KEPT
    assert get() == BODY
    assert mirror.starts() == [0, 40_000]


def test_a_killed_download_goes_on(get, mirror, tmp_path):
    mirror.then(NAME, trickle(100, 0.01))
    code = "import sys; from artgpt4.data.download import *; fetch([RemoteFile(*sys.argv[1:4])], sys.argv[4])"
    running = subprocess.Popen([sys.executable, "-c", code, NAME, mirror.url(NAME), DIGEST, str(tmp_path)])
    part, deadline = tmp_path / PART, time.monotonic() + 60
    while not (part.exists() and part.stat().st_size > 500):
        assert running.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    running.send_signal(signal.SIGKILL)
    running.wait()
    reached = part.stat().st_size
    assert 500 < reached < 8000 and left(tmp_path) == KEPT
    assert get() == BODY
    assert mirror.starts() == [0, reached]


def test_two_runs_do_not_write_into_one(get, refused, mirror):
    mirror.then(NAME, trickle(10_000, 0.1))
    first = threading.Thread(target=get)
    first.start()
    while not mirror.asked:
        time.sleep(0.005)
    assert "another run is writing here; wait for it or stop it" in refused()
    first.join()
    assert get() == BODY and mirror.starts() == [0]


@pytest.mark.parametrize("tags, dates", [("strong", ""), ("weak", OLD), ("", OLD)])
def test_another_version_is_begun_anew(get, refused, mirror, tags, dates):
    mirror.tags, mirror.dates = tags, dates
    mirror.files[NAME] = BODY[::-1]
    mirror.then(NAME, cut(50_000))
    refused(sha256=None, size=len(BODY), tries=1)
    mirror.files[NAME] = BODY
    mirror.dates = dates and NEW
    assert get(sha256=None, size=len(BODY)) == BODY
    assert [(a.start, a.status) for a in mirror.asked] == [(0, 200), (50_000, 200)]


def test_a_weak_tag_is_no_condition_but_a_date_is(get, mirror):
    mirror.tags, mirror.dates = "weak", OLD
    mirror.then(NAME, cut(30_000))
    assert get() == BODY
    assert [(a.start, a.status) for a in mirror.asked] == [(0, 200), (30_000, 206)]


def test_a_server_that_ignores_the_condition_is_found_out(get, refused, mirror):
    "It sends the end of the new file as if it belonged to the beginning of the old one."
    mirror.files[NAME] = BODY[::-1]
    mirror.then(NAME, cut(50_000))
    refused(sha256=None, size=len(BODY), tries=1)
    mirror.files[NAME] = BODY
    mirror.then(NAME, elsewhere(50_000))
    assert get(sha256=None, size=len(BODY)) == BODY
    assert mirror.starts() == [0, 50_000, 0]


def test_without_a_validator_only_a_checksum_allows_going_on(get, refused, mirror):
    mirror.tags = ""
    mirror.then(NAME, cut(50_000), cut(50_000))
    refused(sha256=None, size=len(BODY), tries=1)
    refused(sha256=None, size=len(BODY), tries=1)
    assert get() == BODY
    assert mirror.starts() == [0, 0, 50_000]


def test_a_part_of_something_else_that_goes_unnoticed_costs_one_more_try(get, refused, mirror):
    mirror.tags = ""
    mirror.files[NAME] = BODY[::-1]
    mirror.then(NAME, cut(50_000))
    refused(tries=1)
    mirror.files[NAME] = BODY
    assert get() == BODY
    assert mirror.starts() == [0, 50_000, 0]


def test_a_part_from_another_address_is_not_gone_on_with(get, refused, mirror, tmp_path, waits):
    mirror.then(NAME, cut(40_000))
    refused(tries=1)
    with Mirror({NAME: BODY}) as other:
        fetch([RemoteFile(NAME, mirror.url(NAME), DIGEST)], tmp_path, other.base)
        assert other.starts() == [0]


@pytest.mark.parametrize("note", ["", "[]", "{}", '{"url": 1}', "\x00"])
def test_a_part_whose_note_is_lost_is_begun_anew(get, refused, mirror, tmp_path, note):
    mirror.then(NAME, cut(40_000))
    refused(tries=1)
    (tmp_path / f"{PART}.json").write_text(note)
    assert get() == BODY
    assert mirror.starts() == [0, 0]


def test_a_server_without_ranges_starts_over(get, mirror):
    mirror.ranges = False
    mirror.then(NAME, cut(30_000), cut(60_000))
    assert get() == BODY
    assert [(a.start, a.status) for a in mirror.asked] == [(0, 200), (30_000, 200), (60_000, 200)]


def test_a_server_without_ranges_that_always_breaks_is_given_up(refused, mirror, waits):
    mirror.ranges = False
    mirror.always(NAME, cut(30_000))
    assert "broke off after 30000 of 100000 bytes; gave up after 3 tries in vain" in refused()
    assert [(a.start, a.status) for a in mirror.asked] == [(0, 200), (30_000, 200), (30_000, 200)]


def test_a_part_that_is_all_there_is_only_checked(get, mirror, tmp_path):
    mirror.then(NAME, cut(len(BODY) - 1))
    with pytest.raises(InputError):
        get(tries=1)
    with open(tmp_path / PART, "ab") as f:
        f.write(BODY[-1:])
    assert get() == BODY
    assert mirror.asked[-1].status == 416


def test_a_part_that_is_longer_than_the_file_is_begun_anew(get, mirror, tmp_path):
    mirror.then(NAME, cut(len(BODY) - 1))
    with pytest.raises(InputError):
        get(tries=1)
    with open(tmp_path / PART, "ab") as f:
        f.write(b"more")
    assert get() == BODY
    assert [a.status for a in mirror.asked] == [200, 416, 200]


def test_a_range_that_was_not_asked_for_is_not_taken(get, mirror):
    mirror.then(NAME, elsewhere(500), cut(1000), elsewhere(500))
    assert get() == BODY
    assert mirror.starts() == [0, 0, 1000, 0]


@pytest.mark.parametrize("code", [408, 429, 500, 502, 503, 504])
def test_a_busy_server_is_asked_again(get, refused, mirror, waits, code):
    mirror.then(NAME, status(code), status(code))
    assert get() == BODY
    assert len(waits) == 2 and 0.5 <= waits[0] <= 1 <= waits[1] <= 2


def test_it_is_given_up_in_the_end(refused, mirror, waits, tmp_path):
    mirror.always(NAME, status(503))
    text = refused()
    assert "answered 503 Service Unavailable; gave up after 3 tries in vain, nothing came" in text
    assert len(mirror.asked) == 3 and len(waits) == 2 and left(tmp_path) == []


def test_the_wait_that_a_server_asks_for_is_kept_up_to_a_limit(get, mirror, waits):
    date = format_datetime(datetime.now(timezone.utc) + timedelta(seconds=60), usegmt=True)
    mirror.then(NAME, *(status(429, Retry_After=v) for v in ("7", date, "86400", "0", "tomorrow")))
    assert get(tries=9, max_wait=100) == BODY
    assert waits[0] == 7 and 50 < waits[1] <= 60 and waits[2:4] == [100, 0] and waits[4] > 0


@pytest.mark.parametrize(
    "code, hint",
    [(404, "check the address"), (401, "with your token or account"), (403, "a form or a log-in"), (410, "gone for good"),
     (400, "check the address"), (501, "check the address")],
)  # fmt: skip
def test_a_fault_that_does_not_pass_is_not_repeated(refused, mirror, waits, code, hint):
    mirror.always(NAME, status(code))
    text = refused()
    assert "images/wiki art.zip: http://127.0.0.1" in text and f"answered {code} " in text and hint in text
    assert len(mirror.asked) == 1 and waits == []


CHUNKS = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
GARBAGE = {
    "no word": hang_up, "noise": noise(), "nothing": noise(b""), "no number": noise(b"HTTP/1.1 two hundred\r\n\r\n"),
    "no chunk": noise(CHUNKS + b"zz\r\n"), "half a chunk": noise(CHUNKS + b"ffff\r\nhalf"), "long": noise(b"HTTP/1.1 " + 70_000 * b"2"),
}  # fmt: skip


@pytest.mark.parametrize("fault", GARBAGE.values(), ids=GARBAGE)
def test_no_answer_or_garbage_instead_of_one_is_asked_again(get, refused, mirror, fault, waits):
    mirror.then(NAME, fault, fault)
    assert get(tries=4) == BODY
    assert len(waits) >= 2


@pytest.mark.parametrize("fault", [hang_up, noise()])
def test_garbage_for_ever_is_one_line(refused, mirror, fault):
    mirror.always(NAME, fault)
    assert "cannot read http://127.0.0.1" in refused()
    assert len(mirror.asked) == 3


def test_a_server_that_falls_silent_is_asked_again(get, mirror):
    mirror.then(NAME, stall(30_000))
    assert get(timeout=0.2) == BODY
    assert mirror.starts() == [0, 30_000]


@pytest.mark.parametrize("value", ["9" * 5000, "-1", "many", "1e5", ""])
def test_a_length_that_is_no_length_is_as_good_as_none(get, mirror, value):
    mirror.always(NAME, lambda handler, body: handler.answer(200, body, {"Content-Length": value}, None))
    assert get() == BODY


@pytest.mark.parametrize("span", ["", "bytes", "bytes 5-9", f"bytes {'9' * 5000}-5/7", "lines 30000-/9"])
def test_a_range_that_is_no_range_starts_over(get, mirror, span):
    mirror.then(NAME, cut(30_000), lambda handler, body: handler.answer(206, body, {"Content-Range": span}))
    assert get() == BODY
    assert mirror.starts() == [0, 30_000, 0]


def test_nothing_is_a_file_too(mirror, tmp_path):
    mirror.files["empty"] = b""
    fetch([RemoteFile("empty", mirror.url("empty"), hashlib.sha256(b"").hexdigest(), 0)], tmp_path)
    assert left(tmp_path) == ["empty"]


def test_what_another_run_has_just_brought_is_kept(get, mirror, tmp_path, monkeypatch):
    "It was missing when we looked, and is there when we have the lock."
    get()
    monkeypatch.setattr(download, "faults", lambda files, folder: {NAME: "missing"})
    assert get() == BODY
    assert len(mirror.asked) == 1


def test_a_redirect_is_followed_and_a_circle_is_not(get, refused, mirror, tmp_path):
    mirror.files["moved"] = BODY
    mirror.then("moved", cut(30_000))
    mirror.always(NAME, status(302, Location="/moved"))
    assert get() == BODY
    assert mirror.starts("moved") == [0, 30_000]
    (tmp_path / NAME).unlink()
    mirror.always("moved", status(302, Location="/moved"))
    assert "answered 302" in refused()
    for nonsense in ("file:///etc/passwd", "http://[::1", "http://127.0.0.1:port/"):
        mirror.always(NAME, status(302, Location=nonsense))
        assert "images/wiki art.zip: " in refused()


def test_nobody_there(tmp_path, waits):
    with Mirror({}) as gone:
        address = gone.url(NAME)
    with pytest.raises(InputError, match="cannot read .*refused.*gave up after 2 tries in vain, nothing came"):
        fetch([RemoteFile(NAME, address, DIGEST)], tmp_path, retry=Retry(tries=2, sleep=waits.append))
    assert left(tmp_path) == [] and len(waits) == 1


@pytest.mark.parametrize("kind", ["text/html", "application/zip"])
@pytest.mark.parametrize("known", [{}, {"sha256": None}, {"sha256": None, "size": 37}])
def test_a_web_page_is_not_taken_for_an_archive(refused, mirror, tmp_path, kind, known):
    mirror.always(NAME, page(kind=kind))
    text = refused(**known)
    assert "web page" in text and left(tmp_path) == []


def test_other_bytes_are_deleted_and_named(refused, mirror, tmp_path):
    mirror.files[NAME] = BODY[::-1]
    assert "holds other bytes (sha256" in refused()
    assert left(tmp_path) == [] and len(mirror.asked) == 1


def test_an_announced_length_that_is_wrong_is_named_before_a_byte_is_read(refused, mirror, tmp_path):
    assert "has 100000 bytes, not 99999; nothing was kept" in refused(size=99_999)
    assert left(tmp_path) == []


@pytest.mark.parametrize("length", [99_999, 100_001, 10**12])
def test_a_wrong_length_is_named(refused, mirror, length):
    mirror.always(NAME, announce(length))
    assert f"has {length} bytes, not 100000" in refused(size=len(BODY))


def test_a_length_that_is_too_short_makes_wrong_bytes(refused, mirror, tmp_path):
    mirror.always(NAME, announce(99_999))
    assert "holds other bytes" in refused()
    assert left(tmp_path) == []


def test_a_length_that_is_too_long_is_a_cut(get, refused, mirror, tmp_path):
    mirror.ranges = False
    mirror.always(NAME, announce(100_001))
    assert "broke off after 100000 of 100001 bytes" in refused()
    mirror.ranges = True
    assert get() == BODY  # asked for the one byte more, the server owns that there is none
    assert mirror.asked[-1].status == 416


def test_without_a_length_the_size_is_what_counts(get, refused, mirror, tmp_path):
    mirror.always(NAME, announce(None))
    assert get(sha256=None, size=len(BODY)) == BODY
    (tmp_path / NAME).unlink()
    assert "sends more than 99999 bytes" in refused(size=99_999)
    assert left(tmp_path) == []


def test_a_file_of_which_nothing_is_known_is_called_unverified(get, refused, mirror, tmp_path):
    with pytest.warns(UserWarning, match="not verified, for want of a sha256 or a size: images/wiki art.zip"):
        assert get(sha256=None) == BODY
    (tmp_path / NAME).unlink()
    mirror.then(NAME, cut(10))
    assert "broke off after 10 of 100000 bytes" in refused(sha256=None, tries=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        get()


def test_a_disk_that_is_too_small_is_said_before(refused, mirror, monkeypatch, tmp_path):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(0, 0, 99_000))
    assert "needs 100kB" in (text := refused(size=len(BODY))) and "has 99.0kB left; make room" in text
    assert mirror.asked == []
    assert "needs 100kB" in refused() and len(mirror.asked) == 1 and left(tmp_path) == []


def test_what_is_here_needs_no_room(get, refused, mirror, monkeypatch):
    usage = namedtuple("usage", "total used free")
    mirror.then(NAME, cut(50_000))
    refused(tries=1)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(0, 0, 50_000))
    assert get(size=len(BODY)) == BODY


def test_a_disk_that_fills_up_is_one_line_and_keeps_the_part(get, mirror, tmp_path):
    "The kernel itself refuses the write: the process may not make files of more than 50,000 bytes."
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000));"
        "from artgpt4.data.download import *; fetch([RemoteFile(*sys.argv[1:4])], sys.argv[4])"
    )
    command = [sys.executable, "-c", code, NAME, mirror.url(NAME), DIGEST, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode and last.endswith("wiki art.zip: the disk is full; what came is kept; make room and call again")
    assert left(tmp_path) == KEPT
    assert get() == BODY
    assert mirror.starts() == [0, 50_000]


def test_no_space_left_is_a_full_disk():
    with pytest.raises(InputError, match="^x: the disk is full; make room$"):
        with writing("x", "make room"):
            raise OSError(errno.ENOSPC, "No space left on device")


def test_a_folder_in_the_way(get, refused, mirror, tmp_path):
    (tmp_path / NAME).mkdir(parents=True)
    assert "cannot be written here" in refused()
    shutil.rmtree(tmp_path / "images")
    (tmp_path / "images").write_text("a file")
    assert "cannot be written here" in refused()


def test_offline_nothing_is_asked_for(get, refused, mirror, tmp_path, monkeypatch):
    monkeypatch.setenv("ARTGPT4_OFFLINE", "1")
    text = refused()
    assert "images/wiki art.zip is missing, and ARTGPT4_OFFLINE is set; unset it" in text and mirror.asked == []
    monkeypatch.setenv("ARTGPT4_OFFLINE", "0")
    get()
    monkeypatch.setenv("ARTGPT4_OFFLINE", "true")
    assert get() == BODY
    (tmp_path / NAME).write_bytes(b"touched")
    assert "is altered, and ARTGPT4_OFFLINE is set" in refused()
    assert (tmp_path / NAME).read_bytes() == b"touched"  # it may be all there is
    (tmp_path / "copy/images").mkdir(parents=True)
    (tmp_path / "copy" / NAME).write_bytes(BODY)
    for mirror_folder in (tmp_path / "copy", (tmp_path / "copy").as_uri()):
        fetch([RemoteFile(NAME, mirror.url(NAME), DIGEST)], tmp_path / str(mirror_folder)[:4].strip("/"), mirror_folder)
    assert len(mirror.asked) == 1


def test_several_come_in_order_and_the_first_fault_stops(tmp_path, waits):
    bodies = {f"{n}.bin": bytes([n]) * 1000 for n in range(5)}
    with Mirror(bodies) as mirror:
        mirror.then("1.bin", cut(500))
        mirror.always("3.bin", status(404))
        files = [RemoteFile(n, mirror.url(n), hashlib.sha256(b).hexdigest(), len(b)) for n, b in bodies.items()]
        with pytest.raises(InputError, match="3.bin: .* answered 404"):
            fetch(files, tmp_path, retry=Retry(sleep=waits.append))
        assert [a.name for a in mirror.asked] == ["0.bin", "1.bin", "1.bin", "2.bin", "3.bin"]
        assert left(tmp_path) == ["0.bin", "1.bin", "2.bin"]
        mirror.always("3.bin", cut(1000))
        fetch(files, tmp_path)
        assert [a.name for a in mirror.asked[5:]] == ["3.bin", "4.bin"]


@pytest.mark.parametrize("address", ["example.org/x", "ftp://example.org/x", "", "C:/x"])
def test_an_address_of_another_kind_is_refused(tmp_path, address):
    with pytest.raises(InputError, match="is no http, https or file address"):
        fetch([RemoteFile("x", address, DIGEST)], tmp_path)


@pytest.mark.parametrize(
    "bad", [dict(sha256="xyz"), dict(sha256=DIGEST.upper()), dict(size=-1), dict(path="../x"), dict(path="a\\b"), dict(path="")]
)
def test_a_list_of_files_with_a_mistake_is_refused(bad):
    with pytest.raises(InputError, match="correct the list of files"):
        RemoteFile(**{"path": "x", "url": "https://example.org/x"} | bad)
