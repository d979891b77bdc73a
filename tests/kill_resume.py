"""Kill the pipeline at random moments, go on with `dvc repro`, and compare bits with a run that nobody killed:

    python tests/kill_resume.py --kills 100 [--jobs 2] [--seed 0]

in copies of the repository, in the smoke profile. A kill (SIGKILL) strikes dvc alone, its child alone, or the whole group,
at a random time; at a random step of the training, read off its live log; or inside the renaming that ends a write of
a checkpoint (before it or after it). One run in three is killed once more while it goes on. The next `dvc repro` has to
succeed, and every output of the stage has to be what it was. DVC writes a lock file of its own in place; where a kill has
torn it, it is deleted first, as `make repro` does, and the line says so. Prints a line per kill, a table per stage and kind, and `N of N`; exits 0 only then.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import yaml

from artgpt4.files import mend_dvc_lock
from repository import smoke_run

TRAINING = ["stage1@artgpt4", "stage2@artgpt4", "stage1@projection", "stage2@blind"]
STAGES = [*TRAINING, *TRAINING, "foundation", "foundation", "corpora", "encode@alignment-train", "encode@shards-train",
          "answers@artgpt4", "scores", "render-curves"]
KINDS = ["group", "dvc", "child", "rename"]
RENAMED = {"stage1": ("/checkpoints/", 6), "stage2": ("/checkpoints/", 6), "foundation": ("/checkpoints/", 6),
           "encode": ("/features/", 2)}  # a part of the path, and how many renamings there are to choose from
AGAIN = 1 / 3  # of the runs that go on are killed as well
WAIT = 300  # seconds for one run of one stage
HOOK = '''"Kills the process group at the n-th renaming of a file whose path holds KILL_WHERE, before it or after it."
import os, signal
left, rename = int(os.environ.get("KILL_AT", 0)), os.replace
def replace(src, dst, **options):
    global left
    hit = os.environ.get("KILL_WHERE", "nowhere") in str(dst)
    left -= hit
    if hit and left == 0 and os.environ["KILL_WHEN"] == "before": os.killpg(0, signal.SIGKILL)
    rename(src, dst, **options)
    if hit and left == 0: os.killpg(0, signal.SIGKILL)
if left: os.replace = replace
'''


class Copy:
    "A copy of the repository in which the pipeline has run once, and how its stages ended."

    def __init__(self, folder: Path, made: Path):
        shutil.copytree(made, folder, symlinks=True)
        self.folder = folder
        self.env = {**os.environ, "PYTHONPATH": f"{folder}/hook:{folder}", "DVC_NO_ANALYTICS": "1", "HF_HUB_OFFLINE": "1"}
        self.env |= {"OMP_NUM_THREADS": "1"}
        (folder / "hook").mkdir()
        (folder / "hook/sitecustomize.py").write_text(HOOK)
        self.reference = {stage: self.outputs(stage) for stage in STAGES}

    def outputs(self, stage: str) -> dict[str, str]:
        "The hashes of a stage's outputs, as DVC has recorded them."
        return {out["path"]: out["md5"] for out in yaml.safe_load((self.folder / "dvc.lock").read_text())["stages"][stage]["outs"]}

    def start(self, stage: str, *options: str, **env: str) -> subprocess.Popen:
        "`dvc repro` of one stage in a process group of its own."
        self.out = tempfile.TemporaryFile("w+")
        return subprocess.Popen(["dvc", "repro", "-s", *options, stage], cwd=self.folder, env={**self.env, **env},
                                stdout=self.out, stderr=subprocess.STDOUT, start_new_session=True)

    def said(self) -> str:
        self.out.seek(0)
        return self.out.read()

    def live(self, stage: str) -> Path:
        name, scheme = stage.split("@")
        return self.folder / f"results/smoke/training/{scheme}-{name}.run.jsonl"


def child_of(run: subprocess.Popen) -> psutil.Process | None:
    "The command that dvc has started."
    try:
        found = psutil.Process(run.pid).children(recursive=True)
        return next((p for p in found if any(part.endswith("/artgpt4") for part in p.cmdline())), None)
    except psutil.Error:
        return None


def until(run: subprocess.Popen, condition) -> bool:
    "Wait while the run lives; whether the condition came true."
    while run.poll() is None:
        if condition():
            return True
        time.sleep(0.005)
    return False


def strike(copy: Copy, stage: str, kind: str, rng: random.Random, seconds: float, *options: str) -> str:
    "Start the stage with these options of dvc and kill it; what was hit, empty where the run was over first."
    if kind == "rename":
        where, most = RENAMED.get(stage.split("@")[0], ("smoke/", 1))
        at, when = str(rng.randint(1, most)), rng.choice(["before", "after"])
        run = copy.start(stage, *options, KILL_AT=at, KILL_WHEN=when, KILL_WHERE=where)
        return f"{when} renaming {at}" if run.wait(WAIT) == -signal.SIGKILL else ""
    by_step = stage in TRAINING and rng.random() < 0.6
    if by_step:
        copy.live(stage).unlink(missing_ok=True)
    run, begun = copy.start(stage, *options), time.time()
    if by_step:
        live, step = copy.live(stage), rng.randint(1, 8)
        moment, there = f"step {step}", lambda: live.is_file() and live.read_bytes().count(b"\n") >= step
    else:
        after = rng.uniform(0, seconds)
        moment, there = f"{after:.1f} s", lambda: time.time() - begun > after
    if not until(run, lambda: there() and (kind != "child" or child_of(run))):
        return ""
    try:
        if kind == "child":
            child_of(run).kill()
        else:
            (os.killpg if kind == "group" else os.kill)(run.pid, signal.SIGKILL)
    except (AttributeError, psutil.NoSuchProcess):  # the child has just ended
        run.wait(WAIT)
        return ""
    run.wait(WAIT)
    return moment


def check(copy: Copy, stage: str) -> tuple[str, str]:
    "Go on with one `dvc repro`: what is wrong (nothing, if all is well), and how it went on."
    mended = mend_dvc_lock(copy.folder)  # here and below, as `make repro` does
    run = copy.start(stage)
    code, said = run.wait(WAIT), copy.said()
    how = "DVC's lock mended, " * mended + "waited, " * ("waiting for its end" in said)
    how += "resumed" if "resumed at step" in said else "from the start"
    if code:
        return said[-1500:], how
    wrong = [path for path, digest in copy.outputs(stage).items() if copy.reference[stage][path] != digest]
    left = list(copy.folder.glob("checkpoints/smoke/*/step-*"))
    return ", ".join(f"{path} differs" for path in wrong) or ", ".join(f"{path} is left" for path in left), how


def kill_some(copy: Copy, jobs: list[int], seed: int) -> list[tuple[str, str, str]]:
    "Kills of one copy: (stage, kind, what was wrong) of each."
    rows = []
    for job in jobs:
        rng, moment = random.Random(f"{seed} {job}"), ""
        while not moment:  # a run that was over before the blow does not count
            stage, kind = rng.choice(STAGES), KINDS[job % len(KINDS)]
            moment = strike(copy, stage, kind, rng, 12, "-f")
            if not moment:
                subprocess.run(["dvc", "repro", "-s", stage], cwd=copy.folder, env=copy.env, capture_output=True, check=True)
        if rng.random() < AGAIN:
            mend_dvc_lock(copy.folder)
            again = strike(copy, stage, "group" if kind == "dvc" else kind, rng, 6)  # else two orphans would work on
            moment += f" and {again}" * bool(again)
        wrong, how = check(copy, stage)
        rows.append((stage, kind, wrong))
        print(f"{'FAILED' if wrong else 'ok    '}  {job + 1:3}  {stage:22} {kind:6} at {moment:26} {how} {wrong}", flush=True)
    return rows


def start_over(copy: Copy) -> list[tuple[str, str, str]]:
    "A forced run, and one at another rate, throw the checkpoint of a killed one away."
    rows, stage = [], TRAINING[0]
    dial = copy.folder / "profiles/smoke.yaml"
    for kind, options, change in (("forced", ["-f"], lambda text: text), ("other rate", [], lambda text: text.replace("0.01", "0.02"))):
        copy.start(stage, "-f", KILL_AT="4", KILL_WHEN="after", KILL_WHERE="/checkpoints/").wait(WAIT)
        kept, before = list(copy.folder.glob("checkpoints/smoke/*/step-*.json")), dial.read_text()
        dial.write_text(change(before))
        copy.start(stage, *options).wait(WAIT)
        said, same = copy.said(), copy.outputs(stage) == copy.reference[stage]
        right = kept and "resumed" not in said and same == (kind == "forced")
        dial.write_text(before)
        copy.start(stage).wait(WAIT)
        rows.append((stage, kind, "" if right and copy.outputs(stage) == copy.reference[stage] else said[-1500:] or "no checkpoint"))
        print(f"{'ok    ' if right else 'FAILED'}       {stage:22} {kind}: starts at step 0", flush=True)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=12)
    parser.add_argument("--jobs", type=int, default=1, help="copies killed side by side")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--made", type=Path, help="a copy of the repository in which the pipeline has run, in the smoke profile")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        begun = time.time()
        made = args.made or Path(folder) / "made"
        if not args.made:
            smoke_run(made)
            print(f"a run that nobody killed: {time.time() - begun:.0f} s", flush=True)
        copies = [Copy(Path(folder) / str(n), made) for n in range(args.jobs)]
        with ThreadPoolExecutor(args.jobs) as pool:
            parts = pool.map(lambda n: kill_some(copies[n], range(n, args.kills, args.jobs), args.seed), range(args.jobs))
            rows = [row for part in parts for row in part]
        others = start_over(copies[0])
    for what, column in (("stage", 0), ("kind", 1)):
        tried, good = Counter(row[column] for row in rows), Counter(row[column] for row in rows if not row[2])
        print(f"by {what}: " + ", ".join(f"{name} {good[name]} of {n}" for name, n in sorted(tried.items())))
    good = sum(not row[2] for row in rows)
    print(f"{good} of {args.kills}")
    return 0 if good == args.kills and not any(row[2] for row in others) else 1


if __name__ == "__main__":
    sys.exit(main())
