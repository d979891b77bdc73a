"""Build the site: `make docs`, or

    python docs/build.py

Chapters are executed afresh (docs/execute.py keeps copies of unchanged ones), staged with the rendered results and the
reference (docs/stage.py), and built by Sphinx with every warning an error. If nothing changed, nothing is built.
"""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
BUILD = DOCS / "_build"
HTML = BUILD / "html"


def fingerprint(copies: list[Path], around: str) -> str:
    "A hash of all that the site is made of."
    digest = hashlib.sha256(around.encode())
    sources = [p for p in DOCS.rglob("*") if p.is_file() and BUILD not in p.parents and "__pycache__" not in p.parts]
    for file in [*sorted(sources), DOCS.parent / "pyproject.toml", *copies]:
        digest.update(f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def sphinx() -> str:
    "Build the staged sources; what Sphinx complained about, or nothing."
    for folder in (HTML, BUILD / "doctrees"):
        shutil.rmtree(folder, ignore_errors=True)
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-W",
        "--keep-going",
        "-q",
        "-j",
        "2",
        "-b",
        "html",
        "-c",
        str(DOCS),
        "-d",
        str(BUILD / "doctrees"),
        str(BUILD / "source"),
        str(HTML),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = dict.fromkeys(done.stderr.strip().splitlines())  # Sphinx repeats some for every page it writes
        return "\n".join(lines) or f"sphinx ended with code {done.returncode}"
    return ""


def build() -> str:
    "Build the site where anything changed; the problems, or nothing."
    from execute import chapters, execute, surroundings
    from stage import Site, StageError
    from vendor import VendorError, vendor

    try:
        vendor()
    except VendorError as error:
        return str(error)
    book, runs = chapters(), {}
    for done in execute(book):
        runs[done.chapter] = done
        if done.seconds:
            print(f"{done.chapter.name}: {'failed after ' if done.error else ''}{done.seconds:.1f} s", flush=True)
    if problems := [done.error for done in runs.values() if done.error]:
        return "\n\n".join(problems)
    copies = {chapter: runs[chapter].copy for chapter in book}
    stamp, key = BUILD / "site.sha256", fingerprint(list(copies.values()), surroundings())
    if HTML.is_dir() and stamp.is_file() and stamp.read_text() == key:
        return ""
    stamp.unlink(missing_ok=True)
    try:
        Site(BUILD / "source", copies).write()
    except StageError as error:
        return str(error)
    if problem := sphinx():
        return problem
    stamp.write_text(key)
    return ""


def main() -> int:
    if problem := build():
        print(problem, file=sys.stderr)
        return 1
    print((HTML / "index.html").relative_to(DOCS.parent))
    return 0


if __name__ == "__main__":
    sys.exit(main())
