"""The kill script at a small number of kills; `python tests/kill_resume.py --kills 100` is the whole of it."""

import subprocess
import sys

from repository import ROOT


def test_killed_stages_end_in_the_same_bits(smoke):
    command = [sys.executable, str(ROOT / "tests/kill_resume.py"), "--kills", "4", "--made", str(smoke)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "4 of 4", done.stdout[-3000:] + done.stderr[-3000:]
