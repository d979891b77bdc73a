"""What chapter 15f leaves out because it takes longer, or a server: answers in company against answers alone on 64
paintings, and a push to a hub that lives on this machine.
"""

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from artgpt4.pixels import to_pixel_values
from artgpt4.profile import load_profile
from artgpt4.processor import pad_left
from artgpt4.prompts import DESCRIBE, STAGE2_END, STAGE2_PROMPT
from artgpt4.release import load_trained
from artgpt4.stages import build
from artgpt4.studio.corpora import paint_pixels, sample_paintings

ROOT = Path(__file__).resolve().parent.parent
PAINTINGS = 64


@pytest.fixture(scope="module")
def studio():
    "The trained studio model, its processor, prompts of unequal length and the features of 64 test paintings."
    profile = load_profile("studio", ROOT)
    weights = profile.results / "models" / "artgpt4.safetensors"
    if not weights.is_file():
        say = pytest.fail if os.environ.get("CI") else pytest.skip
        say(f"{weights}: no trained studio model; run `dvc repro`")
    model, processor = build(profile, "artgpt4", profile.seed)
    load_trained(model.eval(), weights)
    paintings = sample_paintings(profile.seed, "test", PAINTINGS)
    pixels = paint_pixels(paintings, profile.corpora.image_size, processor.image_size)
    views = torch.stack([to_pixel_values(Image.fromarray(p), processor.image_size) for p in pixels])
    prompts = [STAGE2_PROMPT.format(instruction=DESCRIBE[i % len(DESCRIBE)]) for i in range(PAINTINGS)]
    return model, processor, prompts, model.get_qformer_features(views)


@torch.no_grad()
def said(model, processor, prompts: list[str], features: torch.Tensor) -> list[list[int]]:
    "The new ids of each row's greedy answer, up to its end symbol."
    tokenizer = processor.tokenizer
    ids, mask = pad_left([processor.encode_prompt(p) for p in prompts], processor.pad_id)
    out = model.generate(
        input_ids=ids, attention_mask=mask, qformer_features=features, max_new_tokens=120, do_sample=False,
        stop_strings=[STAGE2_END], tokenizer=tokenizer, pad_token_id=tokenizer.pad_token_id,
    )
    ends = {tokenizer.eos_token_id, tokenizer.pad_token_id}
    return [[i for i in row if i not in ends] for row in out[:, ids.shape[1] :].tolist()]


def test_answers_in_a_batch_are_the_answers_alone(studio):
    "Token for token, fp32, greedy: 64 paintings at once against one after the other, prompts of unequal length."
    model, processor, prompts, features = studio
    assert len({len(processor.encode_prompt(p)) for p in prompts}) > 1
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    together = said(model, processor, prompts, features)
    alone = [said(model, processor, [p], f[None])[0] for p, f in zip(prompts, features)]
    assert len(set(map(tuple, alone))) > PAINTINGS // 2  # or equality would say little
    assert {i: (a, b) for i, (a, b) in enumerate(zip(alone, together)) if a != b} == {}


def etag(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:40]


class Hub(BaseHTTPRequestHandler):
    "As much of the hub's interface as a push and a download need; what it holds and was asked is on the server."

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def reply(self, value, status: int = 200, **headers: str) -> None:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def do_PUT(self):
        data, oid = self.body(), self.path.rsplit("/", 1)[1]
        if hashlib.sha256(data).hexdigest() != oid:
            return self.reply({"error": "wrong checksum"}, 400)
        self.server.blobs[oid] = data
        self.reply({})

    def do_POST(self):
        data, path, server = self.body(), self.path.split("?")[0], self.server
        server.asked.append(f"POST {path}")
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.reply({"error": "no token"}, 401)
        if path.endswith("/commit/main"):
            return self.commit([json.loads(line) for line in data.splitlines()])
        asked = json.loads(data)
        if path == "/api/repos/create":
            if server.repository is None:  # a second push finds it
                server.repository = f"{asked['organization']}/{asked['name']}"
                server.private = asked.get("private") or asked.get("visibility") == "private"
            return self.reply({"url": f"{server.address}/{server.repository}"})
        if path == "/api/validate-yaml":
            yaml.safe_load(asked["content"].split("---\n")[1])
            return self.reply({"errors": [], "warnings": []})
        if path.endswith("/preupload/main"):
            mode = {True: "lfs", False: "regular"}
            files = [dict(path=f["path"], uploadMode=mode[f["path"].endswith(".safetensors")], shouldIgnore=False)
                     for f in asked["files"]]  # fmt: skip
            return self.reply({"files": files})
        if path.endswith(".git/info/lfs/objects/batch"):
            upload = lambda oid: {"upload": {"href": f"{server.address}/blobs/{oid}"}}  # noqa: E731
            return self.reply({"objects": [{**o, "actions": upload(o["oid"])} for o in asked["objects"]]})
        self.reply({"error": "not here"}, 404)

    def commit(self, lines: list[dict]) -> None:
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                self.server.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.server.files[value["path"]] = self.server.blobs[value["oid"]]
        self.server.commits.append([line["value"]["path"] for line in lines[1:]])
        self.reply({"commitUrl": f"{self.server.address}/{self.server.repository}/commit/{OID}", "commitOid": OID})

    def do_GET(self):
        path, server = self.path.split("?")[0], self.server
        found = re.fullmatch(rf"/{server.repository}/resolve/(?:main|{OID})/(.+)", path)
        if found and found[1] in server.files:
            data = server.files[found[1]]
            return self.reply(data, ETag=f'"{etag(data)}"', X_Repo_Commit=OID)
        if path == f"/api/models/{server.repository}/tree/{OID}":
            return self.reply([dict(type="file", path=f, size=len(d), oid=etag(d)) for f, d in server.files.items()])
        if re.fullmatch(rf"/api/models/{server.repository}(/revision/(main|{OID}))?", path):
            names = [{"rfilename": name} for name in server.files]
            return self.reply({"id": server.repository, "sha": OID, "siblings": names})
        self.reply({"error": "no such entry"}, 404, X_Error_Code="EntryNotFound", X_Repo_Commit=OID)

    do_HEAD = do_GET


TOKEN, OID = "hf_for_this_test", "0123456789abcdef" * 2 + "01234567"
CLIENT = """
import sys, torch
from pathlib import Path
from transformers import AutoModelForImageTextToText, AutoProcessor
from artgpt4.card import model_card, publish
from artgpt4.profile import load_profile
from artgpt4.stages import build

profile = load_profile("studio")
model, processor = build(profile, "artgpt4", 0)
card = model_card(profile, name="painter/tiny")
url = publish(model, processor, "painter/tiny", card, max_shard_size="2MB")
model.push_to_hub("painter/tiny", max_shard_size="2MB")
again = AutoModelForImageTextToText.from_pretrained("painter/tiny")
for name, tensor in model.state_dict().items():
    assert torch.equal(tensor, again.state_dict()[name]), name
assert AutoProcessor.from_pretrained("painter/tiny").image_token_id == processor.image_token_id
Path(sys.argv[1]).write_text(card)
print(url)
"""


@pytest.fixture
def hub():
    "A hub on a free port of this machine."
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.address = f"http://127.0.0.1:{server.server_port}"
    server.repository, server.private = None, None
    server.files, server.blobs, server.commits, server.asked = {}, {}, [], []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_model_processor_and_card_are_pushed_and_found_again(hub, tmp_path):
    proxies = {name for name in os.environ if name.lower().endswith("_proxy")}
    environment = {k: v for k, v in os.environ.items() if k not in proxies} | {
        "HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "home"),
        "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_TELEMETRY": "1",
    }  # fmt: skip
    command = [sys.executable, "-c", CLIENT, str(tmp_path / "card.md")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{hub.address}/painter/tiny/commit/{OID}"
    assert (hub.repository, hub.private) == ("painter/tiny", True)
    first, second = hub.commits
    assert {"README.md", "config.json", "processor_config.json", "tokenizer.json"} <= set(first)
    assert len([f for f in first if f.endswith(".safetensors")]) > 1
    assert "README.md" in second and hub.files["README.md"].decode() == (tmp_path / "card.md").read_text()
