"""The checks of several processes, in an interpreter of their own: a fork of one that has computed with threads can hang."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from repository import ROOT

DEEPSPEED = ROOT / "build/deepspeed/bin"


def check(which: str, python: Path) -> None:
    command = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", str(ROOT / "tests/processes.py"), "-k", which]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{python.parent}:{os.environ['PATH']}"}
    env["TORCH_EXTENSIONS_DIR"] = str(DEEPSPEED.parent / "extensions")  # a lock that a killed compiler left elsewhere is waited for
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    print(done.stdout.splitlines()[-1])


def test_several_processes():
    check("not zero3", Path(sys.executable))


@pytest.mark.skipif(not (DEEPSPEED.parent / "ok").is_file(), reason="`make deepspeed` first: ZeRO-3 was not checked")
def test_several_processes_by_deepspeed():
    check("zero3", DEEPSPEED / "python")
