"""A copy of the repository in a folder of its own, for tests that run commands in it."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent


def copy_files(folder: Path, without: tuple[str, ...] = ()) -> None:
    "What git tracks or would track, into `folder`, but for names that begin with one of `without`."
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, check=True)
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file() and not name.startswith(without):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)


def commit(folder: Path) -> Callable[[str, int], str]:
    "Make `folder` a git repository of one commit, if it is none; a function that runs a command there and returns what it printed."
    env = {**os.environ, "PYTHONPATH": str(folder), "DVC_NO_ANALYTICS": "1", "HF_HUB_OFFLINE": "1", "no_proxy": "127.0.0.1"}
    env |= {"OMP_NUM_THREADS": "1"}
    env.pop("ARTGPT4_OFFLINE", None)
    if not (folder / ".git").exists():
        subprocess.run("git init -q . && git add -A && git -c user.name=a -c user.email=a@example.org commit -qm copy",
                       shell=True, cwd=folder, env=env, check=True)

    def run(command: str, code: int = 0) -> str:
        out = subprocess.run(command.split(), cwd=folder, env=env, capture_output=True, text=True)
        assert out.returncode == code, out.stdout[-3000:] + out.stderr[-3000:]
        return out.stdout + out.stderr

    run.folder = folder
    return run


def smoke_run(folder: Path) -> None:
    "A copy of the repository in `folder`, set to the smoke profile, in which the pipeline has run."
    copy_files(folder)
    params = folder / "params.yaml"
    params.write_text(yaml.safe_dump({**yaml.safe_load(params.read_text()), "profile": "smoke"}))
    commit(folder)("dvc repro")
