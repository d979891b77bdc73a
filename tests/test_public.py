"""Public corpora and frozen parts through the same door: files in their owners' layouts, made here with the standard
library, and a tiny BLIP-2 and LLaMA as transformers saves them, become the pipeline's folders by `dvc repro`; what follows
runs on them unchanged."""

import csv
import io
import json
import os
import random
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image, ImageDraw
from transformers import Blip2Config, Blip2ForConditionalGeneration, LlamaConfig, LlamaForCausalLM, OPTConfig

from artgpt4.data.corpora import read_alignment, read_artemis, read_questions, read_shards
from artgpt4.delta import PLAIN, load_tokenizer
from artgpt4.files import read_json, read_jsonl, sha256

from mirror import Mirror
from repository import ROOT, commit, copy_files

STYLES = ["Impressionism", "Cubism", "Ukiyo_e"]
FELT = ["awe", "contentment", "sadness", "something else"]
WORDS = "the quiet water under a pale sky reminds me of mornings at home and of people whom I have not seen for years".split()


def jpeg(rng: random.Random) -> bytes:
    "A picture of two colours."
    image = Image.new("RGB", (96, 64), tuple(rng.randrange(256) for _ in range(3)))
    ImageDraw.Draw(image).ellipse((20, 10, 70, 50), tuple(rng.randrange(256) for _ in range(3)))
    out = io.BytesIO()
    image.save(out, "JPEG")
    return out.getvalue()


def sentence(rng: random.Random) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randrange(6, 14)))


def make_laion(folder: Path, rng: random.Random, shards: int = 3, pairs: int = 20) -> None:
    "Tars as img2dataset leaves them; one link in five was dead."
    folder.mkdir(parents=True)
    for number in range(shards):
        with tarfile.open(folder / f"{number:05d}.tar", "w") as tar:
            for i in range(pairs):
                key = f"{number:05d}{i:04d}"
                facts = json.dumps(dict(key=key, status="success", punsafe=0.9 if i == 3 else 0.01, pwatermark=0.1))
                for suffix, data in (("jpg", jpeg(rng)), ("json", facts.encode()), ("txt", sentence(rng).encode())):
                    entry = tarfile.TarInfo(f"{key}.{suffix}")
                    entry.size = len(data)
                    tar.addfile(entry, io.BytesIO(data))
        stats = dict(count=pairs * 5 // 4, successes=pairs, failed_to_download=pairs // 4, failed_to_resize=0,
                     status_dict={"success": pairs, "HTTP Error 404: Not Found": pairs // 4})
        (folder / f"{number:05d}_stats.json").write_text(json.dumps(stats))


def make_alignment(archive: Path, rng: random.Random, pairs: int = 40) -> None:
    "MiniGPT-4's zip."
    rows = [dict(image_id=str(i), caption=f"The image shows {sentence(rng)}. {sentence(rng)}.") for i in range(2, pairs + 2)]
    with zipfile.ZipFile(archive, "w") as out:
        out.writestr("cc_sbu_align/filter_cap.json", json.dumps({"annotations": rows}))
        for row in rows:
            out.writestr(f"cc_sbu_align/image/{row['image_id']}.jpg", jpeg(rng))


def make_artemis(table: Path, pictures: Path, rng: random.Random, artworks: int = 120) -> None:
    "ArtEmis' CSV, five annotators an artwork (one with 45), and WikiArt's folders."
    with open(table, "w", newline="", encoding="utf-8") as f:
        rows = csv.writer(f)
        rows.writerow(["art_style", "painting", "emotion", "utterance", "repetition"])
        for i in range(artworks):
            style, name, people = STYLES[i % 3], f"painter-{i % 7}_work-{i}-1889", 45 if i < 4 else 5
            place = pictures / style / f"{name}.jpg"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(jpeg(rng))
            for _ in range(people):
                rows.writerow([style, name, rng.choice(FELT), sentence(rng), people])


def make_frozen(folder: Path, sizes: dict) -> None:
    "A BLIP-2 with a language model that nobody wants, and a LLaMA that has learned one plain sentence by heart."
    torch.manual_seed(0)
    layers = dict(hidden_size=48, intermediate_size=96, num_attention_heads=4)
    opt = OPTConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, ffn_dim=32, word_embed_proj_dim=32)
    Blip2ForConditionalGeneration(Blip2Config(
        vision_config=dict(layers, image_size=sizes["image_size"], patch_size=16, num_hidden_layers=2),
        qformer_config=dict(layers, encoder_hidden_size=48, num_hidden_layers=2), text_config=opt,
        num_query_tokens=sizes["num_query_tokens"])).save_pretrained(folder / "blip2")
    tokenizer = load_tokenizer(ROOT / "foundation/studio/language")
    llama = LlamaForCausalLM(LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=sizes["hidden_size"], intermediate_size=128, num_attention_heads=4,
        num_hidden_layers=sizes["language_layers"], bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id))
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(PLAIN, add_special_tokens=False).input_ids]])
    optimizer = torch.optim.AdamW(llama.parameters(), 0.01)
    for _ in range(60):
        llama(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    for part in (llama, tokenizer):
        part.save_pretrained(folder / "llama")


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    "The repository's files with a profile whose sources are mirrors, and a way to run a command there."
    folder, zipped, rng = tmp_path_factory.mktemp("public") / "repo", tmp_path_factory.mktemp("mirror") / "align.zip", random.Random(7)
    copy_files(folder, without=("results/studio", "foundation/"))
    make_alignment(zipped, rng)
    make_laion(folder / "data/sources/laion", rng)
    make_artemis(folder / "data/sources/artemis.csv", folder / "data/sources/wikiart", rng)
    smoke = yaml.safe_load((folder / "profiles/smoke.yaml").read_text())
    smoke["foundation"] |= dict(source="download", vision="data/sources/blip2", language="data/sources/llama")
    make_frozen(folder / "data/sources", smoke["foundation"])
    smoke["corpora"] |= dict(source="download", validation=18, shard_size=25)
    source = dict(path="", url="", sha256="")
    with Mirror({"cc_sbu_align.zip": zipped.read_bytes()}) as mirror:
        smoke["sources"] = dict(
            laion=source | dict(path="data/sources/laion"), artemis=source | dict(path="data/sources/artemis.csv"),
            wikiart=source | dict(path="data/sources/wikiart"),
            alignment=source | dict(url=mirror.url("cc_sbu_align.zip"), sha256=sha256(zipped)))
        (folder / "profiles/mirror.yaml").write_text(yaml.safe_dump(smoke))
        (folder / "params.yaml").write_text(yaml.safe_dump(dict(profile="mirror", schemes=["artgpt4"])))
        run = commit(folder)
        run.corpora = folder / "data/mirror/corpora"
        if os.environ.get("ARTGPT4_MIRROR"):
            run("dvc repro corpora")
        yield run


@pytest.fixture
def laid_out(copy):
    "The copy, with its corpora laid out; the released benchmark comes from the mirror that the environment names."
    if not os.environ.get("ARTGPT4_MIRROR"):
        pytest.skip("no mirror of the released benchmark: name its folder in ARTGPT4_MIRROR")
    return copy


def test_each_corpus_reads_as_the_painted_ones_do(laid_out):
    counts = {}
    for split in ("train", "validation"):
        shards = read_shards(laid_out.corpora / f"shards/{split}/*.tar")
        counts[f"shards/{split}"] = len(list(shards))
        assert sum(shards.report.dropped.values()) == (2 if split == "train" else 1)  # one in each was marked as unsafe
    for split in ("train", "validation", "test", "heldout"):
        counts[f"alignment/{split}"] = len({r.key for r in read_alignment(laid_out.corpora / f"alignment/{split}")})
        felt = read_artemis(laid_out.corpora / f"artemis/{split}.csv", laid_out.corpora / f"artemis/{split}")
        counts[f"artemis/{split}"] = len({r.key for r in felt})
        assert felt.report.dropped == {}
    assert counts["shards/train"] == 38 and counts["shards/validation"] == 19
    assert counts["alignment/train"] == 38 and counts["alignment/validation"] == 2
    assert counts["artemis/heldout"] == counts["alignment/heldout"] == 4  # the artworks with more than forty annotators
    assert [counts[f"artemis/{s}"] for s in ("train", "validation", "test")] == [98, 6, 12]
    assert counts["alignment/test"] == 12
    assert len(list(read_questions(laid_out.corpora / "benchmark"))) == 35


def test_no_artwork_is_in_two_splits(laid_out):
    truths = {s: {t["painting"] for t in read_jsonl(laid_out.corpora / f"truth/{s}.jsonl")}
              for s in ("train", "validation", "test", "heldout")}
    assert sum(map(len, truths.values())) == len(set().union(*truths.values())) == 120


def test_the_summary_counts_dead_links_and_what_was_dropped(laid_out):
    summary = read_json(laid_out.folder / "results/mirror/corpora.json")
    assert (summary["links"]["lived"], summary["links"]["lost"]) == (60, {"HTTP 404": 15})
    assert summary["records"]["shards/train"]["dropped"] == {"flagged unsafe (punsafe over 0.5)": 2}
    assert summary["records"]["alignment"]["kept"] == 40 and summary["artemis"]["artworks"] == 120


def test_a_second_run_fetches_nothing_and_makes_the_same(laid_out):
    before = yaml.safe_load((laid_out.folder / "dvc.lock").read_text())["stages"]["corpora"]
    laid_out("dvc repro -f corpora")
    assert yaml.safe_load((laid_out.folder / "dvc.lock").read_text())["stages"]["corpora"] == before


def test_what_follows_runs_on_them_unchanged(laid_out):
    laid_out("dvc repro answers@artgpt4")
    rows = read_jsonl(laid_out.folder / "results/mirror/answers/artgpt4.jsonl")
    assert {r["split"] for r in rows} == {"test", "heldout"}
    found = read_json(laid_out.folder / "results/mirror/foundation.json")
    assert found["vision"] == {"folder": "blip2"} and found["language"] == {"folder": "llama"}


@pytest.mark.parametrize("name, told", [
    ("artemis.csv", "sources.artemis.path); ask for ArtEmis at its form"),
    ("wikiart", "sources.wikiart.path); put WikiArt's pictures there"),
    ("laion", "sources.laion.path); put LAION's metadata there"),
])
def test_a_missing_copy_is_one_line_that_says_where_to_ask(copy, name, told):
    path = copy.folder / "data/sources" / name
    aside = path.rename(path.with_name("aside"))
    try:
        out = copy("artgpt4 corpora --profile mirror", code=2)
        assert told in out and "Traceback" not in out
    finally:
        aside.rename(path)


@pytest.mark.parametrize("name", ["blip2", "llama"])
def test_frozen_parts_that_are_not_there_are_named(copy, name):
    path = copy.folder / "data/sources" / name
    aside = path.rename(path.with_name("aside"))
    try:
        out = copy("artgpt4 foundation --profile mirror", code=2)
        assert f"data/sources/{name}: no such folder" in out and "Traceback" not in out
    finally:
        aside.rename(path)


def test_frozen_parts_of_another_size_are_refused(copy):
    dials = copy.folder / "profiles/mirror.yaml"
    before = dials.read_text()
    try:
        dials.write_text(before.replace("hidden_size: 64", "hidden_size: 5120"))
        out = copy("artgpt4 foundation --profile mirror", code=2)
        assert "profiles/mirror.yaml.foundation: made for a language model 5120 wide" in out and "Traceback" not in out
    finally:
        dials.write_text(before)
