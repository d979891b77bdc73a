"""Everything that has to hold, in order: `make test`, or

    python tests/run.py

1. exporting and cleaning the notebooks changes nothing; 2. every chapter runs; 3. the tests in this folder pass, among
them the pipeline at smoke size; 4. the site builds without a warning. One line per check as it finishes, the output of
what failed at the end, and a last line `N passed, N failed`. A skipped test is named; where CI is set, it is a failure.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SLOW = 30  # seconds; a chapter that takes longer is named
STRICT = os.environ.get("CI", "").lower() not in ("", "0", "false")
PYTEST_NO_TESTS = 5


class Checks:
    "Counts checks and prints each as it finishes."

    def __init__(self):
        self.passed, self.failures = 0, []

    def add(self, name: str, error: str = "", seconds: float | None = None, note: str = "") -> None:
        time_taken = f" ({seconds:.1f} s)" if seconds is not None else ""
        print(f"{'FAILED' if error else 'ok    '}  {name}{time_taken}{note}", flush=True)
        if error:
            self.failures.append((name, error))
        else:
            self.passed += 1

    def skip(self, name: str, reason: str) -> None:
        if STRICT:
            self.add(name, f"skipped, and CI is set: {reason}")
        else:
            print(f"skipped {name}: {reason}", flush=True)

    def close(self) -> int:
        for name, error in self.failures:
            print(f"\n{'=' * 100}\n{name}\n{'-' * 100}\n{error.rstrip()}")
        print(f"\n{self.passed} passed, {len(self.failures)} failed", flush=True)
        return 1 if self.failures or not self.passed else 0


def snapshot() -> dict[str, str]:
    "Every file that git tracks or would track -> a hash of it."
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = [ROOT / name for name in listed.split("\0") if name]
    return {f.relative_to(ROOT).as_posix(): hashlib.sha256(f.read_bytes()).hexdigest() for f in files if f.is_file()}


def changes(before: dict[str, str], after: dict[str, str]) -> list[str]:
    "Files that were added, changed or deleted between two snapshots."
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


def check_export(checks: Checks) -> None:
    start, before = time.perf_counter(), snapshot()
    output = ""
    for command in ("nbdev-export", "nbdev-clean"):
        done = subprocess.run([command], cwd=ROOT, capture_output=True, text=True)
        output += done.stdout + done.stderr if done.returncode else ""
    if changed := changes(before, snapshot()):
        output += "changed by nbdev-export or nbdev-clean; commit them:\n  " + "\n  ".join(changed)
    checks.add("nbdev-export and nbdev-clean change nothing", output, time.perf_counter() - start)


def check_chapters(checks: Checks) -> None:
    sys.path.insert(0, str(ROOT / "docs"))
    from execute import chapters, execute

    for done in execute(chapters(), fresh=True):
        note = f"  <- over {SLOW} s: too slow for a chapter" if done.seconds > SLOW else ""
        checks.add(f"chapter {done.chapter.stem}", done.error, done.seconds, note)


def add_test(checks: Checks, line: str) -> None:
    test = json.loads(line)
    if test["outcome"] == "skipped":
        checks.skip(test["name"], test["text"].removeprefix("Skipped: "))
    else:
        checks.add(test["name"], test["text"] if test["outcome"] == "failed" else "", test["seconds"])


def check_tests(checks: Checks) -> None:
    with tempfile.TemporaryDirectory() as folder:
        results, log = Path(folder) / "results.jsonl", Path(folder) / "log"
        results.touch()
        environment = os.environ | {"RESULTS": str(results), "PYTHONPATH": str(ROOT / "tests")}
        command = [sys.executable, "-m", "pytest", "-p", "report", "--continue-on-collection-errors", "tests"]
        with open(log, "wb") as out, open(results, encoding="utf-8") as lines:
            running = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT)
            ended = False
            while not ended:
                ended = running.poll() is not None
                for line in lines:
                    add_test(checks, line)
                time.sleep(0.2)
        if running.returncode not in (0, 1, PYTEST_NO_TESTS):
            checks.add(f"pytest ended with code {running.returncode}", log.read_text(errors="replace"))


def check_site(checks: Checks) -> None:
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "docs/build.py"], cwd=ROOT, capture_output=True, text=True)
    error = (done.stderr or done.stdout or "no reason given") if done.returncode else ""
    checks.add("the site builds without a warning", error, time.perf_counter() - start)


def main() -> int:
    os.environ.update(DVC_NO_ANALYTICS="1", HF_HUB_OFFLINE="1")
    checks = Checks()
    for check in (check_export, check_chapters, check_tests, check_site):
        check(checks)
    return checks.close()


if __name__ == "__main__":
    sys.exit(main())
