"""The pipeline as a whole: its graph, and a run of it in the smoke profile in a copy of the repository."""

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from dvc.repo import Repo

from artgpt4.files import read_json
from artgpt4.pipeline import forbidden, reaches

from repository import ROOT, commit


def graph(root: Path) -> dict[str, dict]:
    "Every stage of the main pipeline and of the studies with the paths it depends on and makes."
    stages = {}
    for stage in Repo(str(root)).index.stages:
        place = Path(stage.path_in_repo).parent
        name = stage.name if str(place) == "." else f"{place}/{stage.name}"
        paths = [[Path(entry.fs_path).resolve().relative_to(root.resolve()).as_posix() for entry in entries]
                 for entries in (stage.deps, stage.outs)]
        stages[name] = dict(deps=paths[0], outs=paths[1])
    return stages


def test_no_stage_that_chooses_reaches_the_test_split():
    stages = graph(ROOT)
    choosing = [s for s in stages if s.startswith(("stage1", "stage2", "foundation")) or s == "studies/rates"]
    assert len(choosing) == 8
    assert {s: forbidden(s, stages) for s in choosing} == {s: [] for s in choosing}
    assert forbidden("scores", stages), "the scores do read the test split; if not, this check sees nothing"


def test_no_stage_of_the_main_pipeline_depends_on_a_study():
    stages = graph(ROOT)
    main = [s for s in stages if not s.startswith("studies/")]
    assert not [(s, p) for s in main for p in reaches(s, stages) if "studies/" in p]


def test_the_foundation_depends_on_code_and_dials_alone():
    allowed = ("artgpt4/", "profiles/")
    assert all(p.startswith(allowed) for p in graph(ROOT)["foundation"]["deps"])


@pytest.fixture(scope="module")
def copy(smoke, tmp_path_factory):
    "A way to run a command in a copy of the repository in which the pipeline has run, at smoke size."
    return commit(Path(shutil.copytree(smoke, tmp_path_factory.mktemp("pipeline") / "repo", symlinks=True)))


def test_the_smoke_profile_runs_from_paint_to_pictures(copy):
    results = copy.folder / "results/smoke"
    scores = read_json(results / "scores.json")
    assert set(scores["schemes"]) == {"artgpt4", "projection", "blind"}
    assert 0 < scores["reference"]["bayes_emotion"] <= 1
    for notebook in ("architecture", "curves", "gallery", "scores"):
        assert (results / f"{notebook}.ipynb").is_file()


def test_a_second_run_finds_everything_up_to_date(copy):
    assert "Data and pipelines are up to date" in copy("dvc repro")


def test_a_forced_stage_makes_the_same_bits(copy):
    before = yaml.safe_load((copy.folder / "dvc.lock").read_text())["stages"]
    for stage in ("encode@shards-train", "stage1@artgpt4", "answers@artgpt4", "render-curves"):
        copy(f"dvc repro -f -s {stage}")
    after = yaml.safe_load((copy.folder / "dvc.lock").read_text())["stages"]
    assert after == before


def test_only_what_is_lost_is_looked_at_again(copy):
    "DVC leaves the folder alone when it runs the stage again, and so does the stage with sound shards."
    folder = copy.folder / "data/smoke/features/shards/train"
    lost = next(folder.glob("*.safetensors"))
    before = lost.read_bytes()
    lost.unlink()
    assert "32 of 64 pictures to look at" in copy("dvc repro encode@shards-train")
    assert lost.read_bytes() == before
    assert "Data and pipelines are up to date" in copy("dvc repro")


def test_by_hand_too_a_cut_shard_and_a_changed_feature_are_told(copy):
    shard = copy.folder / "data/smoke/corpora/shards/train/00000.tar"
    feature = next((copy.folder / "data/smoke/features/alignment/train").glob("*.safetensors"))
    before = {path: path.read_bytes() for path in (shard, feature)}
    try:
        shard.write_bytes(before[shard][: len(before[shard]) // 2])
        assert "shard without its end: download it again" in copy("artgpt4 encode shards/train")
        feature.write_bytes(before[feature][:-1] + bytes([before[feature][-1] ^ 1]))
        assert "damaged; run `artgpt4 encode alignment/train --profile smoke`" in copy("artgpt4 train artgpt4 2", code=2)
    finally:
        for path, data in before.items():
            path.write_bytes(data)
    copy("artgpt4 encode shards/train")
    assert "Data and pipelines are up to date" in copy("dvc repro")


def test_other_profiles_are_untouched(copy):
    changed = subprocess.run(["git", "status", "--porcelain"], cwd=copy.folder, capture_output=True, text=True).stdout
    assert {line[3:].strip('"') for line in changed.splitlines()} <= {"dvc.lock", "params.yaml"}


def test_a_dial_turns_and_runs_only_what_it_touches(copy):
    out = copy("dvc exp run -S profiles/smoke.yaml:train.stage2.rates.blind.init=0.02 stage2@blind")
    assert "artgpt4 train blind 2" in out
    assert "artgpt4 train blind 1" not in out and "artgpt4 corpora" not in out


@pytest.mark.parametrize("spoil, told", [
    ("data/smoke/corpora/alignment/train/filter_cap.json", "no such file"),
    ("data/smoke/features/alignment/train/index.json", "no such file; run `dvc repro encode`"),
])
def test_a_missing_file_is_named(copy, spoil, told):
    path = copy.folder / spoil
    aside = path.rename(path.with_suffix(".aside"))
    try:
        out = copy("artgpt4 train artgpt4 1" if "shards" in spoil else "artgpt4 encode alignment/train"
                   if "corpora" in spoil else "artgpt4 train artgpt4 2", code=2)
        assert path.name in out and told in out and "Traceback" not in out
    finally:
        aside.rename(path)
