"""Run the chapters in fresh kernels and keep the executed copies.

    python docs/execute.py [nbs/00_profile.ipynb ...]

A copy is kept under docs/_build/executed until the chapter or anything it may read changes: the package, the profiles,
the committed results, the installed packages. Cells that nbdev's tests would leave out (`#| eval: false`, and the flags
`slow`, `cuda`, `download`) are left out here too.
"""

import hashlib
import os
import re
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from importlib.metadata import distributions
from multiprocessing import get_context
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EXECUTED = ROOT / "docs" / "_build" / "executed"
READ = [
    "artgpt4",
    "profiles",
    "params.yaml",
    "foundation",
    "results",
    "nbs/fixtures",
    "docs/parts.yaml",
    "docs/execute.py",
]  # by chapters
WORKERS = 2
CELL_SECONDS = 300  # a cell that takes longer fails
# Drawn in the house style, whether or not the chapter knows it; nothing else is left in the chapter's namespace.
SETUP = "from artgpt4.render import set_style\nset_style()\ndel set_style"


@dataclass
class Run:
    "One chapter: its executed copy, the seconds it took (0 from the cache), and what went wrong, if anything."

    chapter: Path
    copy: Path
    seconds: float = 0.0
    error: str = ""


def chapters() -> list[Path]:
    "Every notebook of the book in reading order, the index first."
    found = sorted((ROOT / "nbs").glob("*.ipynb"))
    return sorted(found, key=lambda p: p.stem != "index")


def _files(path: Path) -> list[Path]:
    "The files at or below `path` that a chapter may read, in order."
    found = sorted(path.rglob("*")) if path.is_dir() else [path]
    ignored = re.compile(r"__pycache__|\.ipynb_checkpoints|\.run\.jsonl?$|\.part$")
    return [p for p in found if p.is_file() and not ignored.search(p.as_posix())]


def surroundings() -> str:
    "A hash of everything that a chapter may read besides itself."
    digest = hashlib.sha256(sys.version.encode())
    for line in sorted(f"{d.name}=={d.version}" for d in distributions()):
        digest.update(line.encode())
    for name in READ:
        for file in _files(ROOT / name):
            digest.update(f"{file.relative_to(ROOT)} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def copy_of(chapter: Path, around: str) -> Path:
    "Where the executed copy of `chapter` lies, in the given surroundings."
    key = hashlib.sha256(around.encode() + chapter.read_bytes()).hexdigest()[:16]
    return EXECUTED / f"{chapter.stem}-{key}.ipynb"


def _runs(chapter: Path) -> set[str]:
    "The ids of the cells that nbdev's tests run."
    from nbdev.config import get_config
    from nbdev.test import nb_test_cells

    flags = get_config(ROOT).tst_flags.split()
    return {cell.id for cell in nb_test_cells(chapter, skip_flags=flags)}


def _report(chapter: Path, place: int, error) -> str:
    trace = re.sub(r"\x1b\[[0-9;]*m", "", error.traceback or str(error)).strip()
    return f"nbs/{chapter.name}, cell {place + 1} of the notebook: {error.ename}: {error.evalue}\n{trace}"


def run(chapter: Path, copy: Path) -> Run:
    "Run one chapter from top to bottom, as JupyterLab would, and write its copy if every cell ran."
    os.environ.update(PYTHONHASHSEED="0", PYDEVD_DISABLE_FILE_VALIDATION="1", HF_HUB_OFFLINE="1", DVC_NO_ANALYTICS="1")
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // WORKERS)))
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    from artgpt4.files import write_text
    from artgpt4.render import normalise_notebook

    start, place = time.perf_counter(), -1
    nb, wanted = nbformat.read(chapter, as_version=4), _runs(chapter)
    client = NotebookClient(
        nb,
        timeout=CELL_SECONDS,
        kernel_name="python3",
        resources={"metadata": {"path": str(ROOT / "nbs")}},
        extra_arguments=["--log-level=CRITICAL"],
    )
    try:
        with client.setup_kernel():
            nb.cells.insert(0, nbformat.v4.new_code_cell(SETUP))
            client.execute_cell(nb.cells[0], 0, store_history=False)
            del nb.cells[0]
            for place, cell in enumerate(nb.cells):
                if cell.id in wanted:
                    client.execute_cell(cell, place)
    except CellExecutionError as error:
        return Run(chapter, copy, time.perf_counter() - start, _report(chapter, place, error))
    except (CellTimeoutError, DeadKernelError) as error:
        return Run(chapter, copy, time.perf_counter() - start, f"nbs/{chapter.name}, cell {place + 1}: {error}")
    write_text(copy, nbformat.writes(normalise_notebook(nb)) + "\n")
    for old in EXECUTED.glob(f"{chapter.stem}-{'?' * 16}.ipynb"):
        if old != copy:
            old.unlink(missing_ok=True)
    return Run(chapter, copy, time.perf_counter() - start)


def execute(wanted: list[Path], fresh: bool = False):
    "Yield a `Run` per chapter as each finishes, two at a time; with `fresh`, also where a copy is kept."
    around = surroundings()
    todo = {chapter: copy_of(chapter, around) for chapter in wanted}
    for chapter, copy in list(todo.items()):
        if copy.is_file() and not fresh:
            yield Run(chapter, todo.pop(chapter))
    if not todo:
        return
    with ProcessPoolExecutor(WORKERS, mp_context=get_context("spawn")) as pool:
        for job in as_completed([pool.submit(run, chapter, copy) for chapter, copy in todo.items()]):
            yield job.result()


def main(names: list[str]) -> int:
    failed = 0
    for done in execute([Path(n).resolve() for n in names] or chapters()):
        state = "FAILED" if done.error else f"{done.seconds:.1f} s" if done.seconds else "unchanged"
        print(f"{done.chapter.name}: {state}", flush=True)
        failed += bool(done.error)
        if done.error:
            print(done.error, file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
