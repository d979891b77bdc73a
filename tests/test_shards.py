"""Shards with every kind of damage, written by Python's `tarfile` or by hand: what is lost is counted, the rest is read."""

import io
import json
import random
import tarfile
import tracemalloc

import pytest
from PIL import Image

from artgpt4.data.shards import index_shard, read_shards
from artgpt4.profile import InputError


def jpeg(shade: int = 0, size=(16, 12)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (shade, 90, 120)).save(buffer, "JPEG")
    return buffer.getvalue()


def sample(key: str, **facts) -> list[tuple[str, bytes]]:
    return [(f"{key}.jpg", jpeg()), (f"{key}.json", json.dumps(facts).encode()), (f"{key}.txt", f"text {key}".encode())]


def write(path, members, format=tarfile.PAX_FORMAT):
    with tarfile.open(path, "w", format=format) as tar:
        for name, data in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def read(path, **settings):
    records = read_shards(path, **settings)
    return [r.text for r in records], dict(records.report.dropped)


def headers(path) -> list[int]:
    with tarfile.open(path) as tar:
        return [member.offset for member in tar]


@pytest.fixture
def shard(tmp_path):
    return write(tmp_path / "00000.tar", sum((sample(f"{i:09}") for i in range(5)), []))


def test_every_cut_costs_what_it_cuts(shard):
    whole, starts = shard.read_bytes(), headers(shard)
    with tarfile.open(shard) as tar:
        ends = [m.offset_data + m.size for m in tar if m.name.endswith(".txt")]
    for cut in sorted({0, *range(1, starts[-1] + 1600, 128), *ends, *(e - 1 for e in ends), *starts}):
        shard.write_bytes(whole[:cut])
        texts, dropped = read(shard)
        assert len(texts) == sum(e <= cut for e in ends), cut
        closed = cut >= -(-ends[-1] // 512) * 512 + 512
        assert bool(dropped) != closed, (cut, dropped)


def test_each_damaged_header_costs_its_sample(shard):
    whole = shard.read_bytes()
    for number, start in enumerate(headers(shard)):
        for damage in (b"\xff" * 512, whole[start : start + 124] + b"7" + whole[start + 125 : start + 512]):
            shard.write_bytes(whole[:start] + damage + whole[start + 512 :])
            texts, dropped = read(shard)
            lost = f"text {number // 3:09}"
            if number % 3 == 1:  # the facts alone: without them there is no flag to honour
                assert len(texts) == 5
            else:
                assert texts == [f"text {i:09}" for i in range(5) if f"text {i:09}" != lost]
            assert dropped["corrupt tar header"] == 1


@pytest.mark.parametrize("size", [b"77777777777\0", b"\x80" + bytes(3) + b"\x7f" + bytes(7), b"\xff" * 12, b"00000100000\0", b"not octal!!!"])
def test_a_lying_size_costs_its_member(shard, size):
    whole, start = bytearray(shard.read_bytes()), headers(shard)[3]
    whole[start + 124 : start + 136] = size
    whole[start + 148 : start + 156] = b" " * 8
    whole[start + 148 : start + 156] = b"%06o\0 " % sum(whole[start : start + 512])
    shard.write_bytes(whole)
    texts, dropped = read(shard)
    assert [t for t in texts if "0001" not in t] == [f"text {i:09}" for i in (0, 2, 3, 4)]
    assert dropped


def test_a_huge_member_is_refused_and_memory_stays_flat(tmp_path):
    path = tmp_path / "big.tar"
    info = tarfile.TarInfo("big.jpg")
    info.size = 300 * 2**20
    with open(path, "wb") as f:  # 300 MB of nothing: a sparse file
        f.write(info.tobuf())
        f.truncate(512 + info.size)
    after = write(tmp_path / "after.tar", sample("7")).read_bytes()
    with open(path, "ab") as f:
        f.write(after)
    tracemalloc.start()
    texts, dropped = read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert texts == ["text 7"]
    assert dropped == {"member over 100 MB": 1}
    assert peak < 20e6


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_names(tmp_path, format):
    keys = ["k" * 150, "folder/" * 20 + "k", "épinal/" + "ü" * 90, "short"]
    path = write(tmp_path / "a.tar", sum(map(sample, keys), []), format)
    assert [s.key for s in index_shard(path)] == keys
    assert read(path) == ([f"text {k}" for k in keys], {})


def test_a_ustar_prefix(tmp_path):
    path = write(tmp_path / "a.tar", sample("p" * 90 + "/" + "k" * 60), tarfile.USTAR_FORMAT)
    assert [s.key for s in index_shard(path)] == ["p" * 90 + "/" + "k" * 60]


def test_nonsense_in_an_extended_header(tmp_path, shard):
    for data in (b"0 path=x\n" * 9, b"99999999999999 path=x\n", b"no digits", b"-5 path=x\n", b"5" * 5000, b"7 path\n"):
        info = tarfile.TarInfo("pax")
        info.type = b"x"
        info.size = len(data)
        block = info.tobuf() + data + bytes(-len(data) % 512)
        path = tmp_path / "x.tar"
        path.write_bytes(block + shard.read_bytes())
        assert len(read(path)[0]) == 5


def test_members_in_any_order(tmp_path):
    members = sum((sample(f"{i}") for i in range(6)), [])
    path = write(tmp_path / "a.tar", sorted(members, key=lambda m: (m[0][-4:], m[0])))
    texts, dropped = read(path)
    assert sorted(texts) == [f"text {i}" for i in range(6)]
    assert dropped == {}


def test_names_that_are_not_trusted(tmp_path):
    bad = ["../1", "/etc/1", "a/../../1", "a\\1", "C:1", "bell\a1", "nl\n1"]
    path = write(tmp_path / "a.tar", sum(map(sample, [*bad, "good", "./dotted"]), []))
    texts, dropped = read(path)
    assert texts == ["text good", "text ./dotted"]
    assert dropped == {"untrusted name": 3 * len(bad)}
    assert [p.name for p in tmp_path.iterdir()] == ["a.tar"]


def test_links_and_devices_are_not_followed(tmp_path):
    members = sample("good")
    for kind, name in ((tarfile.SYMTYPE, "1.jpg"), (tarfile.LNKTYPE, "1.txt"), (tarfile.FIFOTYPE, "1.json"), (tarfile.CHRTYPE, "2.jpg")):
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, "/etc/passwd"
        members.append((info, b""))
    folder = tarfile.TarInfo("folder.d")
    folder.type = tarfile.DIRTYPE
    path = write(tmp_path / "a.tar", [(folder, b""), *members])
    assert read(path) == (["text good"], {"not a plain file": 4})


def test_duplicates(tmp_path):
    path = write(tmp_path / "a.tar", [*sample("1"), *sample("2"), ("1.jpg", jpeg(200)), ("1.txt", b"another")])
    assert read(path) == (["text 1", "text 2"], {"second member of this name": 2})
    write(tmp_path / "b.tar", sample("1"))
    records = list(read_shards(tmp_path / "*.tar"))
    assert [r.key for r in records] == ["a.tar/1", "a.tar/2", "b.tar/1"]


@pytest.mark.parametrize(
    ("member", "content", "reason"),
    [
        (".txt", None, "no caption"),
        (".jpg", None, "no image"),
        (".txt", "Café".encode("latin-1"), "caption that is not UTF-8"),
        (".txt", b" \n", "empty text"),
        (".json", b"{", "facts that are no JSON"),
        (".json", b"\xff\xfe", "facts that are no JSON"),
        (".json", b"[" * 100_000, "facts that are no JSON"),
        (".json", b"[]", "facts that are no JSON object"),
        (".json", b'{"status": "failed_to_download"}', "download without success"),
        (".json", b'{"punsafe": 0.51}', "flagged unsafe (punsafe over 0.5)"),
        (".json", b'{"punsafe": Infinity}', "flagged unsafe (punsafe over 0.5)"),
        (".json", b'{"punsafe": NaN}', "unsafe score that is no number"),
        (".json", b'{"punsafe": null}', "unsafe score that is no number"),
        (".json", b'{"punsafe": "0.1"}', "unsafe score that is no number"),
    ],
)
def test_a_bad_member_costs_its_sample(tmp_path, member, content, reason):
    bad = {name: data for name, data in sample("1") if not name.endswith(member)}
    if content is not None:
        bad["1" + member] = content
    path = write(tmp_path / "a.tar", [*sample("0", punsafe=0.5), *bad.items(), *sample("2")])
    records = read_shards(path)
    assert [r.text for r in records] == ["text 0", "text 2"]
    assert dict(records.report.dropped) == {reason: 1}
    assert "a.tar/1" in str(records.report)


def test_a_corrupt_picture_shows_when_it_is_decoded(tmp_path):
    path = write(tmp_path / "a.tar", [("1.jpg", jpeg()[:300]), ("1.txt", b"half a picture")])
    [record] = read_shards(path)
    with pytest.raises(InputError, match="a.tar/1: unreadable image"):
        record.open()


def test_no_shard_at_all(tmp_path):
    rng = random.Random(0)
    for content in (b"", b"\0" * 1024, rng.randbytes(50_000), b"<html>404</html>", jpeg()):
        (tmp_path / "a.tar").write_bytes(content)
        texts, dropped = read(tmp_path / "a.tar")
        assert texts == []
        assert bool(dropped) == (content != b"\0" * 1024)  # that one is a tar, of nothing


def test_tars_appended_to_one_another(tmp_path):
    one, two = (write(tmp_path / f"{n}.tar", sample(n)).read_bytes() for n in "ab")
    (tmp_path / "both.tar").write_bytes(one + two)
    assert read(tmp_path / "both.tar") == (["text a", "text b"], {})


def test_noise_never_raises_and_repeats_nothing(shard):
    whole, rng = shard.read_bytes(), random.Random(7)
    for _ in range(300):
        hurt = bytearray(whole)
        for _ in range(rng.choice((1, 5, 50))):
            hurt[rng.randrange(len(hurt))] = rng.randrange(256)
        shard.write_bytes(hurt)
        found = read(shard)[0]
        assert len(found) == len(set(found))


def test_a_sample_without_a_score_is_taken_with_a_note(tmp_path):
    path = write(tmp_path / "a.tar", [*sample("0", punsafe=0.1), *sample("1"), *sample("2")[:1], *sample("2")[2:], *sample("3", status="failed")])
    for most, noted in ((0.5, {"no unsafe score": 2}), (None, {})):
        records = read_shards(path, max_unsafe=most)
        assert [r.text for r in records] == ["text 0", "text 1", "text 2"]
        assert dict(records.report.noted) == noted
