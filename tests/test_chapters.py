"""What every chapter promises its reader, checked on the notebooks as they are committed."""

import ast
import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CHAPTERS = sorted((ROOT / "nbs").glob("[0-9]*.ipynb"))
LINES = 30  # in an exported cell at most, blank ones not counted


def cells(path: Path) -> list[dict]:
    return [c | {"source": "".join(c["source"])} for c in json.loads(path.read_text(encoding="utf-8"))["cells"]]


def exported(path: Path) -> list[str]:
    return [c["source"] for c in cells(path) if c["cell_type"] == "code" and c["source"].startswith("#| export")]


def module(path: Path) -> str | None:
    found = re.search(r"^#\| default_exp (\S+)", "\n".join(c["source"] for c in cells(path)), re.MULTILINE)
    return f"artgpt4.{found[1]}" if found else None


def python(source: str) -> ast.Module | None:
    "The parsed cell; None where it is a shell line or a magic."
    try:
        return ast.parse(source)
    except SyntaxError:
        return None


def offenders(rule) -> dict[str, object]:
    "The chapters for which `rule` finds something wrong, and what."
    return {path.stem: found for path in CHAPTERS if (found := rule(path))}


def test_every_chapter_begins_with_a_title_and_a_promise():
    assert offenders(lambda path: not re.match(r"# \S.*\n\n> \S", cells(path)[0]["source"])) == {}


def test_chapters_are_committed_without_outputs():
    assert offenders(lambda path: [c["id"] for c in cells(path) if c.get("outputs") or c.get("execution_count")]) == {}


def test_exported_cells_are_short():
    def long(path):
        counted = {
            code.splitlines()[1]: len([line for line in code.splitlines()[1:] if line.strip()])
            for code in exported(path)
        }
        return {first: lines for first, lines in counted.items() if lines > LINES}

    assert offenders(long) == {}


def test_expected_failures_are_expected_in_earnest():
    "`expect_fail(...)` outside a `with` statement makes an object and checks nothing."

    def idle(path):
        trees = [python(c["source"]) for c in cells(path) if c["cell_type"] == "code"]
        calls = [
            n.value
            for tree in trees
            if tree
            for n in ast.walk(tree)
            if isinstance(n, ast.Expr) and isinstance(n.value, ast.Call)
        ]
        return [ast.unparse(c)[:80] for c in calls if getattr(c.func, "id", "") == "expect_fail"]

    assert offenders(idle) == {}


def test_imports_lead_backwards_in_the_book():
    "A module imports only from modules of earlier chapters."
    order = {module(p): i for i, p in enumerate(CHAPTERS) if module(p)}
    forward = []
    for path in CHAPTERS:
        for node in (n for source in exported(path) for n in ast.walk(ast.parse(source))):
            names = [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            names += [f"{n}.{a.name}" for n in names for a in node.names]
            names += [a.name for a in node.names] if isinstance(node, ast.Import) else []
            late = [n for n in names if n in order and order[n] > order.get(module(path), 0)]
            forward += [f"{path.name} imports {n}" for n in late]
    assert forward == []
