"""Bad archives, each made by the standard library: refused in one line, with nothing left and nothing written elsewhere."""

import gzip
import io
import random
import shutil
import stat
import struct
import subprocess
import sys
import tarfile
import time
import zipfile
from collections import namedtuple
from pathlib import Path

import pytest
from tqdm import tqdm

from artgpt4.data import archives
from artgpt4.data.archives import extract
from artgpt4.data.transfer import alone
from artgpt4.profile import InputError

PICTURE = random.Random(0).randbytes(3000)
FILES = {"cc_sbu_align/filter_cap.json": b'{"annotations": []}', "cc_sbu_align/image/1.jpg": PICTURE, "cc_sbu_align/empty": b""}
KINDS = ["zip", "tar", "tar.gz"]


def entry(name: str, data: bytes = b"", **fields) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def tar(path: Path, *entries, format=tarfile.GNU_FORMAT) -> Path:
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w", format=format) as archive:
        for info, data in entries:
            archive.addfile(info, io.BytesIO(data))
    return path


def zipped(path: Path, *entries, how=zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", how) as archive:
        for info, data in entries:
            archive.writestr(info, data)
    return path


def pack(path: Path, files=FILES) -> Path:
    if path.suffix == ".zip":
        return zipped(path, *files.items())
    return tar(path, *(entry(name, data) for name, data in files.items()))


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def refused(tmp_path):
    "The one line with which an archive is refused; nothing may have changed anywhere."

    def refused(archive: Path, **limits) -> str:
        before = {p: p.lstat().st_mtime_ns for p in tmp_path.rglob("*") if not p.is_dir()}
        with pytest.raises(InputError) as e:
            extract(archive, tmp_path / "inner" / "out", **limits)
        assert "\n" not in str(e.value) and str(archive) in str(e.value)
        assert {p: p.lstat().st_mtime_ns for p in tmp_path.rglob("*") if not p.is_dir()} == before
        assert not any(p.name in ("out", ".out.part") for p in tmp_path.rglob("*"))
        return str(e.value)

    return refused


@pytest.mark.parametrize("kind", KINDS)
def test_a_good_one_is_unpacked(tmp_path, kind):
    assert extract(pack(tmp_path / f"a.{kind}"), tmp_path / "out") == tmp_path / "out"
    assert tree(tmp_path / "out") == FILES
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"a.{kind}", "out"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_shells_own_tools_make(tmp_path, kind):
    "`shutil` packs folders as members too, and `./` as the first."
    for name, data in FILES.items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(data)
    (tmp_path / "in/nothing here").mkdir()
    archive = shutil.make_archive(str(tmp_path / "a"), {"tar.gz": "gztar"}.get(kind, kind), tmp_path / "in")
    assert tree(extract(archive, tmp_path / "out")) == FILES
    assert (tmp_path / "out/nothing here").is_dir()


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_all_dialects_of_tar(tmp_path, format):
    files = {f"{'long ' * 15}/{'name ' * 12}": b"1", "Gérôme/L’Âge.jpg" if format != tarfile.USTAR_FORMAT else "a": b"2"}
    archive = tar(tmp_path / "a.tar", *(entry(n, d) for n, d in files.items()), format=format)
    assert tree(extract(archive, tmp_path / "out")) == files


def test_the_name_says_nothing(tmp_path):
    archive = pack(tmp_path / "a.zip").rename(tmp_path / "a.tar.gz")
    assert tree(extract(archive, tmp_path / "out")) == FILES


CLIMBING = ["../x", "a/../../x", "a/..", "..", "/elsewhere/x", "//x", "C:\\x", "C:/x", "..\\x", "a\\b", "a\nb", 300 * "x", 500 * "long/"]


@pytest.mark.parametrize("name", CLIMBING)
@pytest.mark.parametrize("kind", KINDS)
def test_a_name_that_means_trouble(refused, tmp_path, kind, name):
    text = refused(pack(tmp_path / f"a.{kind}", {"good": b"1", name: b"2"}))
    assert "nothing was unpacked" in text
    assert any(why in text for why in ("climbs out", "absolute", "drive", "backslash", "control", "longer than"))


def test_a_name_with_a_nul(refused, tmp_path):
    archive = pack(tmp_path / "a.zip", {"good.jpg_.exe": b"1"})
    archive.write_bytes(archive.read_bytes().replace(b"good.jpg_.exe", b"good.jpg\0.exe"))
    assert "holds a NUL" in refused(archive)
    archive = tar(tmp_path / "a.tar", entry("x", b"1", pax_headers={"path": "good\0.exe"}), format=tarfile.PAX_FORMAT)
    assert "holds a NUL" in refused(archive)


@pytest.mark.parametrize("target", ["/etc/passwd", "../../x", "good", ".", "a/../good"])
@pytest.mark.parametrize("kind", ["tar", "tar.gz"])
def test_symbolic_links(refused, tmp_path, kind, target):
    link = entry("link", type=tarfile.SYMTYPE, linkname=target)
    assert "'link': it is a link to" in refused(tar(tmp_path / f"a.{kind}", entry("good", b"1"), link, entry("link/x", b"2")))


def test_symbolic_links_in_a_zip(refused, tmp_path):
    info = zipfile.ZipInfo("link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    assert "'link': it is a link" in refused(zipped(tmp_path / "a.zip", (info, "/etc")))
    info.external_attr = (stat.S_IFIFO | 0o777) << 16
    assert "neither a file nor a folder" in refused(zipped(tmp_path / "a.zip", (info, "")))


@pytest.mark.parametrize("target", ["/etc/passwd", "../secret", "a/../../secret", "nothing", "link", "folder"])
def test_hard_links_that_leave_or_lead_nowhere(refused, tmp_path, target):
    (tmp_path / "secret").write_text("mine")
    entries = [entry("folder", type=tarfile.DIRTYPE), entry("link", type=tarfile.LNKTYPE, linkname=target)]
    assert "'link': it is a " in refused(tar(tmp_path / "a.tar", *entries))


@pytest.mark.parametrize("kind", ["tar", "tar.gz"])
def test_a_hard_link_within_is_a_copy(tmp_path, kind):
    entries = [entry("a/1.jpg", PICTURE), entry("b/1.jpg", type=tarfile.LNKTYPE, linkname="a/1.jpg"), entry("c", b"3")]
    out = extract(tar(tmp_path / f"a.{kind}", *entries), tmp_path / "out")
    assert tree(out) == {"a/1.jpg": PICTURE, "b/1.jpg": PICTURE, "c": b"3"}
    assert (out / "a/1.jpg").stat().st_nlink == 1


def test_copies_are_counted(refused, tmp_path):
    links = [entry(f"{n}", type=tarfile.LNKTYPE, linkname="a") for n in range(2000)]
    assert "as a bomb does" in refused(tar(tmp_path / "a.tar.gz", entry("a", PICTURE), *links))


@pytest.mark.parametrize("type", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_devices(refused, tmp_path, type):
    assert "neither a file nor a folder" in refused(tar(tmp_path / "a.tar", entry("x", type=type)))


@pytest.mark.parametrize("names", [("a", "a"), ("a", "./a"), ("b/a", "b//a"), ("a", "a/b"), ("a/b", "a"), ("a/b/c", "a/b")])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_of_one_name(refused, tmp_path, kind, names):
    path = tmp_path / f"a.{kind}"
    make = zipped(path, *((n, b"1") for n in names)) if kind == "zip" else tar(path, *(entry(n, b"1") for n in names))
    assert "has that name" in refused(make)


def test_a_folder_twice_is_no_fault(tmp_path):
    folder = entry("a", type=tarfile.DIRTYPE)
    assert tree(extract(tar(tmp_path / "a.tar", folder, entry("a/b", b"1"), folder), tmp_path / "out")) == {"a/b": b"1"}


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_a_bomb(refused, tmp_path, kind):
    archive = pack(tmp_path / f"a.{kind}", {"zeros": bytes(10**7)})
    assert "more than 100 times its" in refused(archive)
    assert "more than 9999999 bytes; give a larger max_bytes" in refused(archive, max_bytes=10**7 - 1)
    extract(archive, tmp_path / "out", max_ratio=1100)


def test_a_bomb_within_a_bomb_is_a_file(tmp_path):
    inner = pack(tmp_path / "a.zip", {"zeros": bytes(10**7)}).read_bytes()
    nest = pack(tmp_path / "b.zip", {f"{n}.zip": inner for n in range(20)})
    assert set(tree(extract(nest, tmp_path / "out")).values()) == {inner}


@pytest.mark.parametrize("kind", KINDS)
def test_too_many_members(refused, tmp_path, kind):
    archive = pack(tmp_path / f"a.{kind}", {str(n): b"" for n in range(11)})
    assert "more than 10 members" in refused(archive, max_members=10)
    extract(archive, tmp_path / "out", max_members=11)


@pytest.mark.parametrize("kind", KINDS)
def test_a_disk_that_is_too_small(refused, tmp_path, kind, monkeypatch):
    archive = pack(tmp_path / f"a.{kind}")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(0, 0, 2999))
    assert "needs 3.0" in refused(archive)


@pytest.mark.parametrize(
    "declared, why",
    [(10, "Bad CRC-32"), (10**5 - 1, "Bad CRC-32"), (10**5 + 1, "has 100000 bytes, and 100001 were declared")],
)
def test_a_zip_that_lies_about_a_size(refused, tmp_path, declared, why):
    archive = pack(tmp_path / "a.zip", {"x": b"x" * 10**5})
    lie = archive.read_bytes().replace(struct.pack("<I", 10**5), struct.pack("<I", declared))
    archive.write_bytes(lie)
    assert why in refused(archive)


def test_a_zip_that_declares_more_than_fits_anywhere(refused, tmp_path):
    archive = pack(tmp_path / "a.zip", {"x": b"x" * 10**5})
    archive.write_bytes(archive.read_bytes().replace(struct.pack("<I", 10**5), struct.pack("<I", 2**32 - 2)))
    assert "as a bomb does" in refused(archive)


@pytest.mark.parametrize("size", [-512, -1, 8**11 - 1, 2**70])
@pytest.mark.parametrize("type", [tarfile.REGTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE])
@pytest.mark.parametrize("kind", ["tar", "tar.gz"])
def test_a_tar_that_lies_about_a_size(refused, tmp_path, size, type, kind):
    header = entry("x", type=type)[0]
    header.size = size
    path = tmp_path / f"a.{kind}"
    with (gzip.open if kind == "tar.gz" else open)(path, "wb") as f:
        f.write(entry("good")[0].tobuf() + header.tobuf(tarfile.GNU_FORMAT) + bytes(10240))
    refused(path)


def test_names_without_end_do_not_fill_the_memory(refused, tmp_path):
    header = entry("x", type=tarfile.GNUTYPE_LONGNAME)[0]
    header.size = 1 << 28
    with gzip.open(tmp_path / "a.tar.gz", "wb", 1) as f:
        f.write(header.tobuf() + bytes(1 << 24))
    assert "a header that declares 268435456 bytes" in refused(tmp_path / "a.tar.gz")


def test_zeros_without_end_are_refused(refused, tmp_path):
    with gzip.open(tmp_path / "a.tar.gz", "wb") as f:
        f.write(entry("good")[0].tobuf() + bytes(1 << 22))
    assert "bytes after its end" in refused(tmp_path / "a.tar.gz")


def test_other_bytes_after_the_end(refused, tmp_path):
    archive = pack(tmp_path / "a.tar")
    archive.write_bytes(archive.read_bytes() + b"and more")
    assert "bytes after its end" in refused(archive)


def test_a_zip_that_declares_too_much_is_refused_before_a_member_is_read(refused, tmp_path, monkeypatch):
    archive = pack(tmp_path / "a.zip", {"first": PICTURE, "second": PICTURE})
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda *_: pytest.fail("a member was read"))
    assert "more than 5999 bytes" in refused(archive, max_bytes=5999)


def test_bytes_are_counted_whatever_was_declared(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"x")
    budget = archives._Budget(tmp_path / "a.zip", 10**6, 10, 100)
    member = archives._Member("x", 10, False, "", lambda: io.BytesIO(bytes(10**7)))
    with pytest.raises(InputError, match="more than 1000000 bytes"), tqdm(disable=True) as bar:
        archives._write(member, tmp_path / "x", budget, bar)
    assert (tmp_path / "x").stat().st_size <= 10**6


@pytest.mark.parametrize("how", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_only_deflate(refused, tmp_path, how):
    assert f"in way {how}" in refused(zipped(tmp_path / "a.zip", ("x", b"x"), how=how))


@pytest.mark.parametrize("flag", [1, 0x41])
def test_an_encrypted_zip(refused, tmp_path, flag):
    archive = pack(tmp_path / "a.zip")
    raw = bytearray(archive.read_bytes())
    for mark, place in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        at = -1
        while (at := raw.find(mark, at + 1)) >= 0:
            raw[at + place] |= flag
    archive.write_bytes(raw)
    assert "unpack the archive by hand, with its password" in refused(archive)


@pytest.mark.parametrize(
    "data, what",
    [(b"", "no zip, tar or tar.gz"), (b"hello", "no zip"), (b"<!DOCTYPE html><p>Sign in", "a web page"), (bytes(10240), "no zip"),
     (b"PK\3\4", "BadZipFile"), (b"\x1f\x8b", "EOFError"), (gzip.compress(b"hello"), "damaged"), (b"Rar!\x1a\x07", "no zip")],
)  # fmt: skip
def test_no_archive(refused, tmp_path, data, what):
    (tmp_path / "a.zip").write_bytes(data)
    assert what in refused(tmp_path / "a.zip")


def test_no_file(refused, tmp_path):
    assert "no such file; download it" in refused(tmp_path / "a.zip")
    (tmp_path / "b.zip").mkdir()
    assert "no such file" in refused(tmp_path / "b.zip")


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_one(refused, tmp_path, kind):
    assert refused(pack(tmp_path / f"a.{kind}", {}))


@pytest.mark.parametrize("kind", KINDS)
def test_cut_anywhere(refused, tmp_path, kind):
    whole = pack(tmp_path / f"a.{kind}").read_bytes()
    end = len(whole.rstrip(bytes(1))) if kind == "tar" else len(whole) - 1  # up to its last header: a file of no bytes
    for length in [*range(0, end, 97), end]:
        (tmp_path / "cut").write_bytes(whole[:length])
        refused(tmp_path / "cut")


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_anywhere(tmp_path, kind):
    "A changed bit is noticed, or does no harm: what comes out stays in its folder, and errors are one line."
    whole, chance = pack(tmp_path / f"a.{kind}").read_bytes(), random.Random(0)
    (tmp_path / "room").mkdir()
    for _ in range(120):
        raw = bytearray(whole)
        for _ in range(chance.choice([1, 1, 3, 20])):
            raw[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)
        (tmp_path / "bad").write_bytes(raw)
        try:
            shutil.rmtree(extract(tmp_path / "bad", tmp_path / "room/out"))
        except InputError as e:
            assert "\n" not in str(e)
        assert list((tmp_path / "room").iterdir()) == []
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"a.{kind}", "bad", "room"]


def test_a_tar_whose_second_header_is_garbled_does_not_end_there(refused, tmp_path):
    raw = bytearray(pack(tmp_path / "a.tar").read_bytes())
    raw[1024 + 148] ^= 1  # its checksum
    (tmp_path / "a.tar").write_bytes(raw)
    assert "no mark at its end" in refused(tmp_path / "a.tar")


def test_what_is_there_is_not_touched(tmp_path):
    archive = pack(tmp_path / "a.zip")
    (tmp_path / "out").mkdir()
    extract(archive, tmp_path / "out")
    with pytest.raises(InputError, match="out: is there already; delete it to unpack it again"):
        extract(archive, tmp_path / "out")
    assert tree(tmp_path / "out") == FILES
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zip", "out"]


def test_a_killed_run_starts_over(tmp_path):
    archive = pack(tmp_path / "a.tar.gz", {f"{n}/{n}.jpg": random.Random(n).randbytes(3000) for n in range(600)})
    code = "import sys; from artgpt4.data.archives import extract; extract(*sys.argv[1:])"
    running = subprocess.Popen([sys.executable, "-c", code, str(archive), str(tmp_path / "out")])
    while not (tmp_path / ".out.part/5/5.jpg").exists():
        assert running.poll() is None
        time.sleep(0.002)
    running.kill()
    running.wait()
    assert (tmp_path / ".out.part").is_dir() and not (tmp_path / "out").exists()
    (tmp_path / ".out.part/stray").write_text("from a former life")
    assert len(tree(extract(archive, tmp_path / "out"))) == 600
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tar.gz", "out"]


def test_two_runs_do_not_write_into_one(tmp_path):
    archive = pack(tmp_path / "a.zip")
    (tmp_path / ".out.part").mkdir()
    with alone(tmp_path / ".out.part"), pytest.raises(InputError, match="another run is writing here"):
        extract(archive, tmp_path / "out")
    assert (tmp_path / ".out.part").is_dir()
    extract(archive, tmp_path / "out")


def test_modes_and_dates_are_not_taken(tmp_path):
    out = extract(tar(tmp_path / "a.tar", entry("x", b"1", mode=0o6777, mtime=0, uid=12345)), tmp_path / "out")
    assert not (out / "x").stat().st_mode & 0o6111 and (out / "x").stat().st_mtime > 10**9
