"""Corpora that have suffered: each fault that is known of public data, met by the reader that has to live with it.

Every file here is written with the standard library or Pillow, never with the project's own writers.
"""

import hashlib
import io
import json
import math
import struct
import unicodedata
import warnings
import zlib
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from artgpt4.data.artemis import read_artemis
from artgpt4.data.corpora import read_alignment, read_met, read_questions, read_wikiart_labels
from artgpt4.data.records import Record, Records, clean_text, open_image, to_rgb, unscramble
from artgpt4.data.splits import SPLITS, prepare_artemis, split_as_published, split_by_name, tokenise
from artgpt4.data.survey import draw_survey, survey
from artgpt4.data.wikiart import Artworks, repair_name
from artgpt4.profile import InputError

HEADER = "art_style,painting,emotion,utterance,repetition"


def walk(records):
    "The records, and what was dropped and noted."
    found = list(records)
    return found, dict(records.report.dropped), dict(records.report.noted)


def table(folder, *rows, header=HEADER, encoding="utf-8"):
    path = folder / "artemis.csv"
    path.write_bytes("".join(f"{line}\n" for line in (header, *rows)).encode(encoding))
    return path


def saved(picture: Image.Image, kind: str, **how) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **how)
    return buffer.getvalue()


# ---- pictures


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()


RAMP = Image.fromarray(np.tile(np.arange(256, dtype=np.uint16) * 257, (8, 1)))
HALVES = Image.fromarray(np.repeat(np.array([[[255, 0, 0], [0, 0, 255]]], np.uint8), 8, axis=0).repeat(8, axis=1))
PICTURES = {
    "cmyk": (saved(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), "JPEG"), (255, 255, 255)),
    "palette": (saved(Image.new("RGB", (8, 8), (0, 128, 255)).quantize(4), "PNG"), (0, 128, 255)),
    "palette with a transparent colour": (saved(Image.new("P", (8, 8), 0), "PNG", transparency=0), (255, 255, 255)),
    "one bit": (saved(Image.new("1", (8, 8), 1), "PNG"), (255, 255, 255)),
    "glass": (saved(Image.new("RGBA", (8, 8), (9, 9, 9, 0)), "PNG"), (255, 255, 255)),
    "half glass": (saved(Image.new("LA", (8, 8), (0, 128)), "PNG"), (127, 127, 127)),
    "sixteen bits": (saved(Image.fromarray(np.full((8, 8), 64 * 257, np.uint16)), "PNG"), (64, 64, 64)),
    "sixteen bits, TIFF": (saved(Image.fromarray(np.full((8, 8), 64 * 257, np.uint16)), "TIFF"), (64, 64, 64)),
    "sixteen bits in thirty-two": (saved(Image.fromarray(np.full((8, 8), 64 * 257, np.int32)), "TIFF"), (64, 64, 64)),
    "one pixel": (saved(Image.new("RGB", (1, 1), (7, 7, 7)), "PNG"), (7, 7, 7)),
    "20,000 pixels wide": (saved(Image.new("RGB", (20_000, 4), (7, 7, 7)), "PNG"), (7, 7, 7)),
}


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_of_every_kind_open_in_their_colours(name):
    data, colour = PICTURES[name]
    picture = open_image(data, name)
    assert picture.mode == "RGB"
    assert np.abs(np.subtract(picture.getpixel((0, 0)), colour)).max() <= 1


def test_all_sixteen_bit_greys_are_scaled_and_none_is_clipped():
    assert np.array_equal(np.asarray(to_rgb(RAMP))[0, :, 0], np.arange(256))


def test_of_an_animation_the_first_frame_is_taken():
    frames = [Image.new("RGB", (8, 8), c) for c in ("red", "blue")]
    for kind in ("GIF", "PNG", "WEBP"):
        data = saved(frames[0], kind, save_all=True, append_images=frames[1:])
        assert open_image(data).getpixel((0, 0))[0] > 200, kind


@pytest.mark.parametrize("orientation, first", [(1, (255, 0, 0)), (3, (0, 0, 255)), (6, (255, 0, 0)), (8, (0, 0, 255))])
def test_a_picture_on_its_side_is_turned_upright(orientation, first):
    picture = open_image(saved(HALVES, "PNG", exif=exif(orientation)))
    assert picture.getpixel((0, 0)) == first
    assert picture.size == ((16, 8) if orientation in (1, 3) else (8, 16))


def bomb(side: int) -> bytes:
    "A PNG of a few bytes that claims `side` x `side` pixels."
    data = bytearray(saved(Image.new("1", (8, 8)), "PNG"))
    data[16:24] = struct.pack(">II", side, side)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


BROKEN = {
    "zero bytes": b"",
    "truncated JPEG": saved(HALVES.resize((200, 200)), "JPEG")[:700],
    "truncated PNG": saved(RAMP.resize((100, 100)), "PNG")[:120],
    "a page": b"<html>404 not found</html>",
    "floating point": saved(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"),
    "32 bits": saved(Image.fromarray(np.full((4, 4), 1 << 24, np.int32)), "TIFF"),
    "bomb": bomb(10_000),
    "large bomb": bomb(30_000),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", BROKEN)
def test_broken_pictures_are_one_line_that_names_them(name):
    message = "far too many pixels" if "bomb" in name else "unreadable image"
    with pytest.raises(InputError, match=f"row 3: {message}") as error:
        open_image(BROKEN[name], "row 3")
    assert "\n" not in str(error.value)


def test_a_thousand_damaged_pictures_never_raise_anything_else():
    rng = np.random.default_rng(0)
    whole = [saved(HALVES.resize((40, 30)), kind) for kind in ("JPEG", "PNG", "GIF", "WEBP", "TIFF")]
    whole.append(saved(HALVES.resize((4, 3)), "JPEG", exif=exif(6))[:120] + saved(HALVES.resize((4, 3)), "JPEG")[2:])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for i in range(1000):
            data = bytearray(whole[i % len(whole)])
            for place in rng.integers(0, len(data), 1 + i % 9):
                data[place] = rng.integers(256)
            try:
                open_image(bytes(data))
            except InputError:
                pass


def test_checked_records_note_size_and_mode_and_drop_what_cannot_be_read(tmp_path):
    (tmp_path / "good.png").write_bytes(PICTURES["sixteen bits"][0])
    (tmp_path / "bad.jpg").write_bytes(BROKEN["truncated JPEG"])
    images = [tmp_path / "good.png", tmp_path / "bad.jpg", tmp_path / "good.png", None, tmp_path / "gone.png"]
    records = Records(lambda report: (Record(str(i), "a text", image) for i, image in enumerate(images))).checked()
    found, dropped, _ = walk(records)
    assert [r.facts for r in found] == [dict(size=(8, 8), mode="I;16")] * 2
    assert dropped == {"an image that cannot be read": 3}
    assert "bad.jpg: unreadable image" in str(records.report)


# ---- texts and emotions


@pytest.mark.parametrize("text, reason", [
    (None, "a text that is no string"), (4.5, "a text that is no string"), (math.nan, "a text that is no string"),
    (["a"], "a text that is no string"), ("", "empty text"), (" \n\t", "empty text"), ("\ufeff\x00", "empty text"),
])  # fmt: skip
def test_a_text_is_a_string_and_not_empty(text, reason):
    assert walk(Records(lambda report: iter([Record("a", text, None)])))[1] == {reason: 1}


@pytest.mark.parametrize("emotion", ["joy", "", "awe!", "something_else", math.nan, 3, ["awe"], "awe\u0301"])
def test_an_emotion_outside_the_nine_is_dropped(emotion):
    records = Records(lambda report: iter([Record("a", "text", None, emotion)]))
    assert walk(records) == ([], {"an emotion outside the nine": 1}, {})


@pytest.mark.parametrize("emotion", ["Awe", " awe ", "AWE", "awe\n"])
def test_capitals_and_spaces_of_an_emotion_are_forgiven_and_noted(emotion):
    found, dropped, noted = walk(Records(lambda report: iter([Record("a", "text", None, emotion)])))
    assert (found[0].emotion, dropped, noted) == ("awe", {}, {"an emotion respelled": 1})


def test_texts_are_nfc_and_lose_only_what_nobody_can_see():
    for kept in ("½ ﬁ ² ， １", "two\nlines\tand a tab", "família", "البحر هادئ", "zero\u200dwidth"):
        assert clean_text(kept) == unicodedata.normalize("NFC", kept)
    assert clean_text("caf\u0065\u0301") == "café"
    assert clean_text("\ufeffa\x00b\x07c\x85\ud83d") == "a b c \ufffd"


def test_mojibake_in_a_text_is_noted_and_left_alone():
    found, _, noted = walk(Records(lambda report: iter([Record("a", "un cafÃ©", None), Record("b", "un café", None)])))
    assert ([r.text for r in found], noted) == (["un cafÃ©", "un café"], {"mojibake in a text": 1})


@pytest.mark.parametrize("text", ["é", "naïve", "Ünal", "São", "“quoted” — and…", "Ã", "½", "宁静", "Łódź", "ñandú°"])
def test_sound_text_is_never_unscrambled(text):
    assert unscramble(text) == text


# ---- tables

GOOD = "Realism,calm,awe,the sea lies still,5"
TABLES = {
    "extra columns": (table, (GOOD + ",x",), HEADER + ",comment", 1, {}, {}),
    "columns in another order": (table, ("awe,calm,5,a text,Realism",), "emotion,painting,repetition,utterance,art_style",
                                 1, {}, {}),
    "quotes and newlines inside": (table, ('Realism,calm,awe,"so ""still"",\nthe sea",5',), HEADER, 1, {}, {}),
    "a byte-order mark": (table, (GOOD,), "\ufeff" + HEADER, 1, {}, {}),
    "duplicate rows": (table, (GOOD, GOOD), HEADER, 2, {}, {"the same row again": 1}),
    "an emotion outside the nine": (table, (GOOD, "Realism,calm,joy,a text,5"), HEADER, 1,
                                    {"an emotion outside the nine": 1}, {}),
    "too few cells": (table, (GOOD, "Realism,calm,awe"), HEADER, 1, {"too few cells in a row": 1}, {}),
    "too many cells": (table, (GOOD, GOOD + ",6,7"), HEADER, 1, {"too many cells in a row": 1}, {}),
    "blank lines": (table, ("", GOOD, "", ""), HEADER, 1, {}, {}),
    "NUL bytes": (table, ("Realism,calm,awe,the \0sea\0,5",), HEADER, 1, {}, {"NUL bytes taken out": 1}),
    "no style": (table, (GOOD, ",calm,awe,a text,5"), HEADER, 1, {"no art_style or no painting": 1}, {}),
    "an empty utterance": (table, (GOOD, "Realism,calm,awe,,5"), HEADER, 1, {"empty text": 1}, {}),
    "the header again": (table, (GOOD, HEADER), HEADER, 1, {"an emotion outside the nine": 1}, {}),
    "Windows line ends": (table, (GOOD + "\r",), HEADER + "\r", 1, {}, {}),
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_that_have_suffered(name, tmp_path):
    write, rows, header, kept, dropped, noted = TABLES[name]
    found, *counts = walk(read_artemis(write(tmp_path, *rows, header=header)))
    assert (len(found), *counts) == (kept, dropped, noted)
    assert "\0" not in found[0].text


def test_the_line_that_is_not_utf8_is_named_and_the_others_stay_whole(tmp_path):
    path = table(tmp_path, "Realism,un café,awe,très calme,5")
    path.write_bytes(path.read_bytes() + "Realism,un café,fear,très “sombre”,5\n".encode("cp1252"))
    records = read_artemis(path)
    found, dropped, noted = walk(records)
    assert [r.text for r in found] == ["très calme", "très “sombre”"]
    assert (dropped, noted) == ({}, {"not UTF-8, read as Windows-1252": 1})
    assert records.report.examples["not UTF-8, read as Windows-1252"] == ["line 3"]


def test_a_cell_beyond_csvs_limit_costs_its_row_and_no_more(tmp_path):
    rows = [GOOD, f"Realism,calm,awe,{'word ' * 40_000},5", GOOD.replace("still", "flat")]
    records = read_artemis(table(tmp_path, *rows))
    found, dropped, _ = walk(records)
    assert len(found) == 2
    assert list(dropped) == ["no CSV: field larger than field limit (131072)"]


def test_a_quote_never_closed_swallows_at_most_its_limit(tmp_path):
    rows = [f"Realism,calm,awe,number {i} lies still,5" for i in range(8000)]
    records = read_artemis(table(tmp_path, 'Realism,calm,awe,"never closed,5', *rows))
    found, dropped, _ = walk(records)
    assert len(found) > 4000
    assert sum(dropped.values()) >= 1 and found[-1].text == "number 7999 lies still"


@pytest.mark.parametrize("header, message", [
    ("art_style,painting,utterance,repetition", "no column emotion"),
    ("art_style,painting,emotion", "no column utterance"),
    (HEADER + ",emotion", "two columns named emotion"),
    ("version https://git-lfs.github.com/spec/v1", "Git LFS pointer"),
])  # fmt: skip
def test_a_header_that_will_not_do_is_one_clear_line(header, message, tmp_path):
    with pytest.raises(InputError, match=message):
        walk(read_artemis(table(tmp_path, GOOD, header=header)))


def test_files_that_are_no_table(tmp_path):
    with pytest.raises(InputError, match="UTF-16"):
        walk(read_artemis(table(tmp_path, GOOD, encoding="utf-16")))
    (tmp_path / "empty.csv").touch()
    with pytest.raises(InputError, match="empty.csv: empty"):
        walk(read_artemis(tmp_path / "empty.csv"))
    with pytest.raises(InputError, match="no such file"):
        walk(read_artemis(tmp_path / "gone.csv"))


# ---- names


def paintings(folder, *names):
    for name in names:
        path = folder / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(saved(HALVES, "JPEG"))
    return folder


@pytest.mark.parametrize("on_disk", ["Gré/é", "Gre\u0301/e\u0301", "grÃ©/Ã©", "grã©/ã©", "gr├⌐/├⌐", "gr%C3%A9/%c3%a9",
                                     "gr#U00e9/#U00E9", "gr\udce9/\udce9", "gr?/?", "GRE/E"])
@pytest.mark.parametrize("asked", ["Gré/é", "Gre\u0301/e\u0301", "grã©/ã©", "gr%E9/%E9"])
def test_every_damage_of_a_name_finds_its_file(on_disk, asked, tmp_path):
    style, name = on_disk.split("/")
    paintings(tmp_path, f"{style}/edouard_{name}-the-bar", f"{style}/edouard_x-the-bar")
    rows = [f"{asked.split('/')[0]},edouard_{asked.split('/')[1]}-the-bar,awe,a text,5"]
    records = read_artemis(table(tmp_path, *rows), images=tmp_path)
    found, dropped, noted = walk(records)
    assert (dropped, len(found)) == ({}, 1), records.report
    assert found[0].image.name == f"edouard_{name}-the-bar.jpg"
    same = unicodedata.normalize("NFC", on_disk) == unicodedata.normalize("NFC", asked)
    assert noted == ({} if same else {"a name repaired": 1})


def test_a_name_that_matches_no_file_or_two_is_counted(tmp_path):
    paintings(tmp_path, "Realism/head(1)", "Realism/head[1]", "Realism/calm")
    rows = [f"Realism,{name},awe,a text,5" for name in ("calm", "lost", "head1", "head(1)", "../Realism/calm", "head1")]
    found, dropped, noted = walk(read_artemis(table(tmp_path, *rows), images=tmp_path))
    assert [r.image.name for r in found] == ["calm.jpg", "head(1).jpg"]
    assert dropped == {"no such artwork": 2, "a name that fits several artworks": 2}
    assert noted == {}


@pytest.mark.parametrize("name", ["plain-name_1888(1)", "são-paulo", "100%-cotton", "Łódź", "#Unreal", "crème-brûlée"])
def test_sound_names_are_not_repaired(name):
    assert repair_name(name) == name


def test_a_folder_without_artworks_is_one_clear_line(tmp_path):
    for folder in (tmp_path, tmp_path / "gone"):
        with pytest.raises(InputError, match="no art_style/painting.jpg below it"):
            Artworks(folder)


# ---- ArtEmis


def rows_of_shape(artworks: int, rng: np.random.Generator) -> list[str]:
    "Rows of v1's shape: 5 or 6 annotators an artwork, every hundredth with 41 to 50; 1 to 40 words."
    rows = []
    for i in range(artworks):
        annotators = int(rng.integers(41, 51)) if i % 100 == 0 else int(rng.integers(5, 7))
        for _ in range(annotators):
            words = " ".join(f"w{n}" for n in rng.zipf(1.5, int(rng.integers(1, 41))) % 500)
            rows.append(f"Style_{i % 27},painter-{i % 97}_work-{i},awe,{words},{annotators}")
    rng.shuffle(rows)
    return rows


def test_preparation_on_a_table_of_the_real_shape(tmp_path):
    rows = rows_of_shape(2000, np.random.default_rng(3))
    summary = prepare_artemis(table(tmp_path, *rows), tmp_path / "out")
    lengths = [len(row.split(",")[3].split()) for row in rows]
    assert summary["rows"] == len(rows) and summary["artworks"] == 2000
    assert summary["too_short"] == sum(n < 5 for n in lengths) and summary["too_long"] == sum(n > 30 for n in lengths)
    artworks = {split: part["artworks"] for split, part in summary["splits"].items()}
    assert artworks == dict(train=1682, validation=100, test=198, rest=20)
    written = {s: walk(read_artemis(tmp_path / f"out/{s}.csv"))[0] for s in SPLITS}
    assert {s: len(r) for s, r in written.items()} == {s: p["rows"] for s, p in summary["splits"].items()}
    keys = [{r.key for r in records} for records in written.values()]
    assert sum(map(len, keys)) == len(set.union(*keys))
    words = Counter(w for r in written["train"] for w in r.text.split())
    frequent = {w for w, n in words.items() if n >= 5}
    assert set((tmp_path / "out/vocabulary.txt").read_text().split()) == frequent
    assert json.loads((tmp_path / "out/summary.json").read_text()) == summary


def test_the_published_split_is_scikit_learns():
    "The test artworks that `train_test_split` of scikit-learn 1.9, called as ArtEmis calls it, drew from these names."
    for n, digest in ((79_330, "1fd86a0e1f40b4d2"), (2000, "a1e4c8272c65a989"), (137, "1346585f71181793")):
        names = [f"Style_{i % 27}/painter-{i % 1100}_work-{i}" for i in range(n)]
        split = split_as_published(names)
        tests = sorted(name.replace("/", "") for name, place in split.items() if place == "test")
        assert hashlib.sha256("".join(tests).encode()).hexdigest()[:16] == digest
        assert split == split_as_published(names[::-1])
    assert list(split.values()).count("test") == 14


def test_adding_artworks_moves_none_and_spellings_stay_together():
    names = [f"Style/work-{i}" for i in range(500)] + ["Style/café"]
    split = split_by_name(names)
    more = split_by_name([f"Other/{i}" for i in range(500)] + names[::-1])
    assert split == {name: more[name] for name in names}
    for spelling in ("Style/cafe\u0301", "Style/cafÃ©", "style/caf%C3%A9"):
        assert split_by_name([spelling])[spelling] == split["Style/café"]


def test_later_versions_keep_the_places_of_the_first(tmp_path):
    rows = rows_of_shape(300, np.random.default_rng(4))
    first = table(tmp_path, *rows)
    prepare_artemis(first, tmp_path / "v1")
    header = HEADER + ",anchor_art_style,anchor_painting,version"
    said = "fear,one two three four five,5,Style_1,other,new"
    new = [f"Style_{i % 27},painter-{i % 97}_work-{i},{said}" for i in range(400)]
    both = table(tmp_path, *(row + ",,,old" for row in rows), *new, header=header)
    summary = prepare_artemis(both, tmp_path / "v2", like=tmp_path / "v1")
    assert summary["version"] == "combined" and summary["artworks"] == 400
    places = {}
    for version in ("v1", "v2"):
        lines = (tmp_path / version / "artworks.csv").read_text().splitlines()[1:]
        places[version] = dict(line.rsplit(",", 1) for line in lines)
    assert places["v1"].items() <= places["v2"].items()


def test_a_preparation_that_fails_leaves_no_summary(tmp_path):
    path = table(tmp_path, *rows_of_shape(50, np.random.default_rng(5)))
    prepare_artemis(path, tmp_path / "out")
    before = (tmp_path / "out/train.csv").read_bytes()

    def fails(text):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_artemis(path, tmp_path / "out", tokens=fails)
    assert not (tmp_path / "out/summary.json").exists()
    assert (tmp_path / "out/train.csv").read_bytes() == before
    assert not list((tmp_path / "out").glob("*.part")) and not list((tmp_path / "out").glob(".*.part"))


@pytest.mark.parametrize("text, tokens", [
    ("It's a dog's life!", "it is a dog 's life"),
    ("I can't, won't, don't", "i can not will not do not"),
    ("they’ve “been” there-abouts", "they have been there abouts"),
    ("'quoted' words", "quoted words"),
    ("  spaces\tand\nlines ", "spaces and lines"),
    ("海很静。", "海 很 静"),
    ("البحر هادئ، جدا", "البحر هادئ جدا"),
    ("", ""),
])  # fmt: skip
def test_tokens(text, tokens):
    assert tokenise(text) == tokens.split()


# ---- alignment and benchmark


NO_STRING, NO_NAME = "a text that is no string", "an image_id that is no plain name"


def alignment(folder, annotations):
    (folder / "image").mkdir(exist_ok=True)
    (folder / "image/12.jpg").write_bytes(saved(HALVES, "JPEG"))
    (folder / "filter_cap.json").write_text(json.dumps(dict(annotations=annotations)))
    (folder.parent / "secret.jpg").write_bytes(saved(HALVES, "JPEG"))
    return read_alignment(folder)


@pytest.mark.parametrize("image_id, caption, reason", [
    ("12", "fine", None), (12, "fine", None), ("12", "  ", "empty text"), ("13", "a hill", "no such image"),
    ("12", 5, NO_STRING), ("12", None, NO_STRING), ("12", math.nan, NO_STRING),
    ("../../secret", "out", NO_NAME), ("../image/12", "round about", NO_NAME), ("/etc/x", "out", NO_NAME),
    ("..\\12", "out", NO_NAME), ("a" * 300, "long", NO_NAME), (1.5, "half", NO_NAME), (True, "yes", NO_NAME),
    (None, "none", NO_NAME), ("", "none", NO_NAME), ("12\0", "nul", NO_NAME),
])  # fmt: skip
def test_alignment_annotations(image_id, caption, reason, tmp_path):
    (tmp_path / "align").mkdir()
    found, dropped, _ = walk(alignment(tmp_path / "align", [dict(image_id=image_id, caption=caption)]))
    assert (len(found), dropped) == ((1, {}) if reason is None else (0, {reason: 1}))


def test_alignment_references_are_many_and_doubles_are_noted(tmp_path):
    pairs = [dict(image_id="12", caption=c) for c in ("a sea", "a calm sea", "a sea")] + ["odd", dict(caption="no id")]
    found, dropped, noted = walk(alignment(tmp_path, pairs))
    assert (len(found), dropped, noted) == (3, {"no image_id or no caption": 2}, {"the same pair again": 1})


def test_alignment_folders_that_will_not_do(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        walk(read_alignment(tmp_path))
    for data, message in ((b"[1, 2]", "no list 'annotations'"), (b'{"annotations": 3}', "no list 'annotations'"),
                          (b"{", "not JSON"), ('{"annotations": ["é"]}'.encode("latin-1"), "not UTF-8"),
                          (b'{"annotations": []}', "image: no such folder")):
        (tmp_path / "filter_cap.json").write_bytes(data)
        with pytest.raises(InputError, match=message):
            walk(read_alignment(tmp_path))


def test_questions(tmp_path):
    good = dict(part="IDC", item=1, round=1, question="What?", reference="A sea.")
    (tmp_path / "IDC").mkdir()
    (tmp_path / "IDC/1.jpg").write_bytes(saved(HALVES, "JPEG"))
    rows = [good, good | dict(part="../IDC"), good | dict(item="../IDC/1"), good | dict(item=2), dict(part="IDC"), 7,
            good | dict(question=None)]
    (tmp_path / "questions.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    found, dropped, _ = walk(read_questions(tmp_path))
    assert len(found) == 1
    assert dropped["no such part or item"] == 2 and dropped["no such image"] == 1
    assert dropped["a text that is no string"] == 1 and sum(dropped.values()) == 6


# ---- museums


def test_wikiart_labels(tmp_path):
    paintings(tmp_path, "Realism/calm", "Art_Nouveau_Modern/grã©goire_tree")
    (tmp_path / "style_class.txt").write_text("3 Art_Nouveau\n21 Realism\n")
    rows = ["Realism/calm.jpg,21", "Art_Nouveau_Modern/grégoire_tree.jpg,3", "Realism/calm.jpg,99", "Realism/calm.jpg"]
    (tmp_path / "style_val.csv").write_text("\n".join(rows), encoding="utf-8")
    found, dropped, noted = walk(read_wikiart_labels(tmp_path / "style_val.csv", images=tmp_path))
    assert [(r.text, r.facts["class"]) for r in found] == [("Realism", "Realism"), ("Art Nouveau", "Art_Nouveau")]
    assert dropped == {"a label without a class": 1, "too few cells in a row": 1}
    assert noted == {"a name repaired": 1}
    (tmp_path / "style_class.txt").write_text("Realism\n")
    with pytest.raises(InputError, match="not a number and a name"):
        walk(read_wikiart_labels(tmp_path / "style_val.csv"))
    (tmp_path / "style_class.txt").unlink()
    with pytest.raises(InputError, match="style_class.txt: no such file"):
        walk(read_wikiart_labels(tmp_path / "style_val.csv"))


def test_the_met(tmp_path):
    header = ("Object Number,Is Highlight,Is Timeline Work,Is Public Domain,Object ID,Title,Medium,"
              "Artist Display Name,Link Resource")
    rows = ['1,F,F,True,10,"Wheat,\nwith ""Cypresses""",Oil on canvas,Vincent,http://x', "2,F,F,False,11,Untitled,Acrylic,S,",
            "3,F,F,True,12,Lost,Glass,,", "4,F,F,True,13,,,,", "5,F,F,True,14,,Bronze,,"]
    (tmp_path / "MetObjects.csv").write_bytes(("\ufeff" + "\r\n".join([header, *rows])).encode())
    (tmp_path / "images").mkdir()
    for number in (10, 13, 14):
        (tmp_path / f"images/{number}.jpg").write_bytes(saved(HALVES, "JPEG"))
    found, dropped, _ = walk(read_met(tmp_path / "MetObjects.csv", images=tmp_path / "images").checked())
    assert [(r.key, r.text) for r in found] == [("10", 'Wheat, with "Cypresses". Oil on canvas'), ("14", "Bronze")]
    assert found[0].facts["Artist Display Name"] == "Vincent" and found[0].facts["size"] == (16, 8)
    assert dropped == {"not in the public domain": 1, "no such image": 1, "empty text": 1}
    with pytest.raises(InputError, match="no picture named by an object's number"):
        walk(read_met(tmp_path / "MetObjects.csv", images=tmp_path / "gone"))


# ---- surveys


def test_a_survey_counts_what_a_list_would():
    rng = np.random.default_rng(6)
    records = [Record(str(i), "word " * int(rng.integers(1, 30)), None, rng.choice(["awe", "fear"]),
                      dict(art_style=f"S{i % 12}")) for i in range(200)]  # fmt: skip
    found = survey(Records(lambda report: iter(records)))
    assert found.report.kept == 200 and found.words.total() == 200
    assert max(found.words) == max(len(r.text.split()) for r in records)
    assert found.emotions["awe"] == sum(r.emotion == "awe" for r in records)
    labels = [label.get_text() for ax in draw_survey(found).axes for label in ax.get_yticklabels()]
    assert "4 more" in labels and "kept" in labels
