"""The released model fetched from a hub and put together: a loopback server with the hub's addresses, everything tiny."""

import hashlib
import importlib.util
import json
import os
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor
from transformers import Blip2Config, Blip2ForConditionalGeneration, LlamaConfig, LlamaForCausalLM, OPTConfig

from artgpt4.assemble import assemble, fetch_frozen, get_folder, run_assemble
from artgpt4.delta import FolderTensors, load_tokenizer
from artgpt4.files import sha256
from artgpt4.model import ArtGPT4ForConditionalGeneration
from artgpt4.profile import InputError, find_root
from artgpt4.release import export_release, release_report, report_lines

LLAMA = find_root(Path(__file__).parent) / "foundation" / "studio" / "language"
ENGLISH = "A black chair and a white rock are in the road."
SIZES = dict(hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4)


class Hub(BaseHTTPRequestHandler):
    "Serves folders `owner/name` below a root as the hub does, and remembers which files were asked for."

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body: bool):
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        parts = parts[2:] if api else parts
        repository, rest = self.server.root / "/".join(parts[:2]), parts[2:]
        if not repository.is_dir():
            return self.reply(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body)
        files = sorted(p for p in repository.iterdir())
        commit = hashlib.sha1(repository.name.encode()).hexdigest()
        if api and rest[:1] == ["tree"]:
            listed = [{"type": "file", "path": p.name, "size": p.stat().st_size, "oid": sha256(p)[:40]} for p in files]
            return self.reply(200, json.dumps(listed).encode(), {}, body)
        if api:
            if rest[:1] == ["revision"] and rest[1] not in ("main", commit):
                return self.reply(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, body)
            info = {"id": "/".join(parts[:2]), "sha": commit, "siblings": [{"rfilename": p.name} for p in files]}
            return self.reply(200, json.dumps(info).encode(), {}, body)
        return self.send_file(repository / rest[2], commit, body)

    def send_file(self, path: Path, commit: str, body: bool):
        name = f"{path.parent.name}/{path.name}"
        if not path.is_file() or name in self.server.lost:
            return self.reply(404, b"", {"X-Error-Code": "EntryNotFound"}, body)
        if body:
            self.server.asked.append(name)
        self.reply(200, path.read_bytes(), {"ETag": f'"{sha256(path)[:40]}"', "X-Repo-Commit": commit}, body)

    def reply(self, status: int, content: bytes, headers: dict, body: bool):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), "Content-Type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)


def split_into(folder: Path, tensors: dict, files: list[str], save) -> None:
    "Write tensors over several files with an index; the last file gets the language model of a BLIP-2."
    last = [n for n in tensors if n.startswith("language_")]
    rest = [n for n in tensors if n not in last]
    places = {n: files[-1] if n in last else files[i * (len(files) - bool(last)) // len(rest)] for i, n in enumerate(rest)}
    places |= dict.fromkeys(last, files[-1])
    for file in files:
        save({n: t for n, t in tensors.items() if places[n] == file}, folder / file)
    name = "model.safetensors" if files[0].endswith("safetensors") else "pytorch_model.bin"
    (folder / f"{name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


@pytest.fixture(scope="module")
def shelf(tmp_path_factory) -> SimpleNamespace:
    "A root with BLIP-2, LLaMA, a delta and a language model of another size; a checkpoint; the model it came from."
    root = tmp_path_factory.mktemp("hub")
    torch.manual_seed(0)
    opt = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, ffn_dim=32, word_embed_proj_dim=32)
    eyes = dict(image_size=64, patch_size=16, initializer_range=0.02, **SIZES)
    config = Blip2Config(vision_config=eyes, qformer_config=dict(encoder_hidden_size=48, **SIZES),
                         text_config=OPTConfig(vocab_size=64, **opt), num_query_tokens=8)
    blip2 = Blip2ForConditionalGeneration(config)
    (root / "eyes").mkdir()
    config.save_pretrained(root / "eyes" / "blip2")
    state = dict(blip2.state_dict())
    split_into(root / "eyes" / "blip2", state, [f"pytorch_model-{i}-of-3.bin" for i in (1, 2, 3)], torch.save)
    shutil.copytree(LLAMA, root / "text" / "llama")
    vicuna = AutoModelForCausalLM.from_pretrained(LLAMA)
    with torch.no_grad():
        for p in vicuna.parameters():
            p *= 1 + 0.01 * torch.rand_like(p)
    shutil.copytree(LLAMA, root / "text" / "delta", ignore=shutil.ignore_patterns("model.safetensors"))
    base = FolderTensors(LLAMA)
    difference = {n: t - base[n] for n, t in vicuna.state_dict().items()}
    split_into(root / "text" / "delta", difference, [f"pytorch_model-{i}-of-2.bin" for i in (1, 2)], torch.save)
    LlamaForCausalLM(LlamaConfig(vocab_size=64, **SIZES)).save_pretrained(root / "text" / "smaller")
    blip2.save_pretrained(root / "whole")
    model = ArtGPT4ForConditionalGeneration.from_parts(root / "whole", vicuna).eval()
    (root / "files" / "released").mkdir(parents=True)
    checkpoint = root / "files" / "released" / "checkpoint_3.pth"
    torch.save({"model": export_release(model, trained_only=True), "epoch": 3}, checkpoint)
    return SimpleNamespace(root=root, model=model, checkpoint=checkpoint)


@pytest.fixture
def hub(shelf, monkeypatch):
    "The shelf behind a loopback server, which the hub's client is pointed to."
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.root, server.asked, server.lost = shelf.root, [], set()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def parts(shelf, hub, tmp_path) -> dict:
    url = f"{hub.url}/files/released/resolve/main/checkpoint_3.pth"
    return dict(vision="eyes/blip2", base="text/llama@main", delta="text/delta", checkpoint=url,
                sha256=sha256(shelf.checkpoint), out=tmp_path / "artgpt4", sentence=ENGLISH, dtype="float32")


def weights(asked: list[str]) -> list[str]:
    return sorted(name for name in asked if name.endswith((".bin", ".safetensors", ".pth")))


def test_everything_from_afar(parts, hub, shelf, capsys):
    run_assemble(**parts)
    printed = capsys.readouterr().out
    assert "The adapters cannot be told from a fresh initialisation" in printed and "none given" in printed
    assert weights(hub.asked) == [
        "blip2/pytorch_model-1-of-3.bin", "blip2/pytorch_model-2-of-3.bin",  # not the third: a language model
        "delta/pytorch_model-1-of-2.bin", "delta/pytorch_model-2-of-2.bin", "llama/model.safetensors",
        "released/checkpoint_3.pth",
    ]
    model, processor = (kind.from_pretrained(parts["out"]) for kind in (AutoModelForImageTextToText, AutoProcessor))
    assert processor.image_token_id == model.config.image_token_id == model.config.text_config.vocab_size
    ids = torch.tensor([[1, *[model.config.image_token_id] * 8, 5, 6]])
    inputs = {"input_ids": ids, "pixel_values": torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))}
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, shelf.model(**inputs).logits, atol=1e-4, rtol=0)
    facts = json.loads((parts["out"] / "assembled.json").read_text())
    assert facts["vision"] == {"hub": "eyes/blip2", "commit": hashlib.sha1(b"blip2").hexdigest()}
    assert facts["language"]["base"]["hub"] == "text/llama" and facts["checkpoint"]["sha256"] == parts["sha256"]
    assert str(parts["out"].parent) not in "".join(p.read_text() for p in parts["out"].glob("*.json"))


def test_the_frozen_parts_alone(parts, hub, tmp_path):
    out = tmp_path / "frozen"
    facts = fetch_frozen(out, vision=parts["vision"], language=parts["base"], delta=parts["delta"], sentence=ENGLISH)
    assert weights(hub.asked) == [
        "blip2/pytorch_model-1-of-3.bin", "blip2/pytorch_model-2-of-3.bin",
        "delta/pytorch_model-1-of-2.bin", "delta/pytorch_model-2-of-2.bin", "llama/model.safetensors",
    ]
    assert facts["vision"] == {"hub": "eyes/blip2", "commit": hashlib.sha1(b"blip2").hexdigest()}
    assert sorted(p.name for p in out.iterdir()) == ["language", "vision"]
    assert str(tmp_path) not in "".join(p.read_text() for p in out.rglob("*.json"))


def test_a_second_time_fetches_nothing_and_gives_the_same(parts, hub):
    assemble(**parts)
    before = {p.name: sha256(p) for p in parts["out"].iterdir()}
    hub.asked.clear()
    assemble(**parts)
    assert weights(hub.asked) == []
    assert {p.name: sha256(p) for p in parts["out"].iterdir()} == before


def test_what_was_fetched_before_a_break_is_kept(parts, hub):
    hub.lost = {"delta/pytorch_model-2-of-2.bin"}
    with pytest.raises(InputError, match="text/delta: no such folder here, and not from the hub"):
        assemble(**parts)
    assert sorted(p.name for p in parts["out"].parent.iterdir()) == ["artgpt4.downloads"]
    hub.lost = set()
    hub.asked.clear()
    assemble(**parts)
    assert weights(hub.asked) == ["delta/pytorch_model-2-of-2.bin"]


def test_a_wrong_pairing_is_refused_before_its_weights_are_fetched(parts, hub):
    with pytest.raises(InputError, match=r"made for a language model \d+ wide with \d+ blocks, .* is 48 wide with 2") as e:
        assemble(**parts | {"base": None, "delta": None, "language": "text/smaller"})
    assert "\n" not in str(e.value)
    assert not any(name.startswith("smaller/model") for name in hub.asked)


def test_half_precision_is_the_default(parts):
    del parts["dtype"]
    assert assemble(**parts)["dtype"] == "float16"
    model = AutoModelForImageTextToText.from_pretrained(parts["out"])
    kinds = {str(p.dtype) for n, p in model.named_parameters() if ".adapter." in n or "qformer" in n}
    assert kinds == {"torch.float32"} and model.dtype == torch.float16


def test_other_bytes_under_the_address_are_refused(parts):
    with pytest.raises(InputError, match="holds other bytes"):
        assemble(**parts | {"sha256": "0" * 64})
    assert not parts["out"].exists()


@pytest.mark.parametrize("source", ["text/nothing", "text/llama@not-there"])
def test_what_the_hub_does_not_have_is_one_line(hub, tmp_path, source):
    with pytest.raises(InputError, match=f"{source}: no such folder here, and not from the hub") as e:
        get_folder(source, tmp_path)
    assert "\n" not in str(e.value)


def test_without_a_network_the_line_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="offline"):
        get_folder("text/llama", tmp_path)


def test_a_sentencepiece_tokenizer_is_read_or_the_line_names_what_is_missing(reference, tmp_path):
    shutil.copyfile(reference / "tokenizer.model", tmp_path / "tokenizer.model")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    if importlib.util.find_spec("sentencepiece") and importlib.util.find_spec("google.protobuf"):
        assert len(load_tokenizer(tmp_path)) == 512
    else:
        with pytest.raises(InputError, match="pip install sentencepiece protobuf"):
            load_tokenizer(tmp_path)


@pytest.fixture
def reference() -> Path:
    "The folder of the released code's tensors."
    if not (folder := os.environ.get("ARTGPT4_REFERENCE")):
        (pytest.fail if os.environ.get("CI") else pytest.skip)("ARTGPT4_REFERENCE is not set")
    return Path(folder)


def test_the_released_code_s_own_checkpoint_is_reported(reference):
    path = reference / "official_checkpoint_model.safetensors"
    report = release_report(path)
    assert report["parts"] == {"adapter tensors": 16, "norms before the MLP": 4, "norms before the attention": 2,
                               "projection tensors": 2}
    assert (report["blocks"], report["attention_norms"], report["mlp_norms"]) == (4, [0, 2], [0, 1, 2, 3])
    assert (report["hidden_size"], report["adapter_size"], report["qformer_size"]) == (64, 16, 32)
    assert report["buffers"] == sum("inv_freq" in n or "position_ids" in n for n in load_file(path)) > 0
    assert report["adapters"]["verdict"] == "differ from a fresh initialisation"  # they were drawn larger than PyTorch does
    assert "published source" in report_lines(report)[2]
    whole = release_report(reference / "official_full_state_dict.safetensors")
    assert whole["recipe"].startswith("a whole model") and whole["attention_norms"] == [0, 1, 2, 3]
