"""The released benchmark, fetched by checksum and derived anew: the committed numbers must come out.

Needs the released files: set ARTGPT4_MIRROR to a folder or URL that holds `Evaluation/`. Without it the tests are
skipped, except in CI, where a missing mirror is a failure.
"""

import os
import shutil

import pandas as pd
import pytest

from artgpt4.data.download import faults
from artgpt4.evaluation.benchmark import TRANSCRIPT, committed, derive_released, fetch_released, read_answers
from artgpt4.evaluation.benchmark import read_released, read_transcript, released_files
from artgpt4.profile import InputError

DERIVED = ("scores.csv", "verdicts.csv", "averages.json", "sources.json")


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    "The released files, fetched through the mirror that the environment names."
    if not os.environ.get("ARTGPT4_MIRROR"):
        reason = "ARTGPT4_MIRROR is not set: no released files to fetch"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return fetch_released(tmp_path_factory.mktemp("released"))


@pytest.fixture
def copy(released, tmp_path):
    "A copy of the released files that a test may spoil."
    return shutil.copytree(released, tmp_path / "copy")


def test_fetched_files_are_the_released_ones(released):
    assert faults(released_files(), released) == {}
    assert len([p for p in released.rglob("*") if p.is_file()]) == len(released_files())


def test_derived_numbers_are_the_committed_ones(released, tmp_path):
    derive_released(released, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(DERIVED)
    for name in DERIVED:
        assert (tmp_path / name).read_text() == committed(name).read_text(), name


def test_print_and_transcript_differ_where_the_paper_and_the_judge_do(released):
    table = read_released(released)
    judged = table[table.transcript_score.notna()]
    apart = judged[judged.printed_score != judged.transcript_score]
    assert len(judged) == 54
    assert {(r.part, r.item) for r in apart.itertuples()} == {("ISAC", 6), ("ISAC", 9)}
    means = judged[judged.part == "ISAC"].groupby("system").transcript_score.mean()
    assert means.to_dict() == pytest.approx({"ArtGPT-4": 2.65, "MiniGPT-4": 2.15})


def test_the_transcript_is_heard_and_not_remembered(copy):
    path = copy / "Evaluation" / TRANSCRIPT
    before = read_transcript(path)
    path.write_text(path.read_text().replace("score response A a 4", "score response A a 5", 1))
    after = read_transcript(path)
    changed = before.score.compare(after.score)
    assert changed.index.tolist() == [0] and changed.other.tolist() == [5.0]


def test_answers_have_both_systems_in_every_round(released):
    answers = read_answers(released)
    assert answers.groupby(["part", "item", "round"]).system.apply(sorted).map(tuple).nunique() == 1
    assert len(answers) == 2 * (10 + 10 + 5 + 2 * 5)
    assert answers.answer.str.len().min() > 0
    slips = answers[answers.label == "B"]
    assert [tuple(r) for r in slips[["part", "item", "round", "system"]].to_numpy()] == [("MDIUC", 1, 2, "MiniGPT-4")]


def test_altered_and_missing_files_are_named(copy, tmp_path):
    with open(copy / "Evaluation" / "ISAC" / "Answer.txt", "a") as f:
        f.write("\n")
    (copy / "Evaluation" / "ICRC" / "2.webp").unlink()
    with pytest.raises(InputError) as error:
        derive_released(copy, tmp_path / "out")
    assert "Evaluation/ISAC/Answer.txt is altered" in str(error.value)
    assert "Evaluation/ICRC/2.webp is missing" in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_damaged_mirror_is_named_and_nothing_of_it_kept(copy, tmp_path):
    (copy / "Evaluation" / "IDC" / "1.jpg").write_bytes(b"another picture")
    with pytest.raises(InputError, match="Evaluation/IDC/1.jpg: .* holds other bytes"):
        fetch_released(tmp_path / "new", copy)
    assert not [p for p in (tmp_path / "new").rglob("*") if p.is_file()]
    (copy / "Evaluation" / "IDC" / "1.jpg").unlink()
    with pytest.raises(InputError, match="Evaluation/IDC/1.jpg: cannot read"):
        fetch_released(tmp_path / "new", copy)


def test_an_altered_copy_is_mended_by_fetching_again(copy):
    (copy / "Evaluation" / TRANSCRIPT).write_text("nothing to hear")
    assert faults(released_files(), fetch_released(copy)) == {}


def test_committed_numbers_hold_no_text_of_the_release(released):
    said = read_transcript(released / "Evaluation" / TRANSCRIPT)
    kept = pd.read_csv(committed("verdicts.csv"), dtype=str)
    assert list(kept) == list(said)
    assert kept.sub_scores.dropna().str.fullmatch(r"[\d. ]+").all()
    assert set(kept.manner) == set(said.manner) and len(set(kept.manner)) == 6
