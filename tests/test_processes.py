"""The checks of several processes, in an interpreter of their own: a fork of one that has computed with threads can hang."""

import os
import subprocess
import sys

import pytest
from accelerate.utils import is_deepspeed_available
from repository import ROOT


def check(which: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(ROOT / "tests/processes.py"), "-k", which]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    print(done.stdout.splitlines()[-1])


def test_several_processes():
    check("not zero3")


@pytest.mark.skipif(not is_deepspeed_available(), reason="DeepSpeed is not installed: ZeRO-3 was not checked")
def test_several_processes_by_deepspeed():
    check("zero3")
