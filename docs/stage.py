"""Turn executed chapters, rendered results and the package's docstrings into sources that Sphinx can read.

Used by build.py and readme.py. A chapter stays what it is in JupyterLab: prose, code, outputs. What changes: directives
are obeyed and removed, links between notebooks become links between pages, and a public name in backticks leads to its
entry in the reference.
"""

import ast
import importlib
import os
import re
import shutil
from pathlib import Path

import nbformat
import yaml
from fastcore.nbio import read_nb
from nbdev.config import get_config
from nbdev.processors import clean_magics, filter_stream_, hide_, hide_line, strip_ansi
from nbdev.process import NBProcessor

import api

ROOT = Path(__file__).resolve().parent.parent
PICTURES = (".svg", ".png", ".jpg", ".jpeg", ".webp", ".gif")
PARTS = yaml.safe_load((ROOT / "docs" / "parts.yaml").read_text())  # part: first and last number of its chapters
TAGS = {"echo": "remove-input", "output": "remove-output", "include": "remove-cell"}  # `#| echo: false` and its kin


class StageError(Exception):
    "A page cannot be made: one line that says which, why and what to do."


def page_name(notebook: Path) -> str:
    "01_files.ipynb -> files, as nbdev names its pages."
    return re.sub(r"^\d+[a-zA-Z0-9]*_", "", notebook.stem)


def module_of(notebook: Path) -> str | None:
    "The module that a chapter exports to, with the package's name; None for a chapter without one."
    for cell in read_nb(notebook).cells:
        if cell.cell_type == "code" and (name := cell.directives.get("default_exp")):
            return f"artgpt4.{name}"
    return None


def directed_cells(executed: Path) -> list:
    "The cells of an executed notebook, nbdev's directives obeyed, as nbformat cells tagged for MyST-NB."
    nb = read_nb(executed)
    NBProcessor(
        nb=nb, procs=[strip_ansi, hide_line, filter_stream_, clean_magics, hide_], rm_directives=False, process=True
    )
    kept = []
    for old in nb.cells:
        directives = old.directives if old.cell_type == "code" else {}
        if "default_exp" in directives or not old.source.strip():
            continue
        cell = nbformat.from_dict({k: old[k] for k in ("cell_type", "id", "metadata", "source") if k in old})
        tags = [tag for name, tag in TAGS.items() if directives.get(name) == "false"]
        tags += ["exported"] if directives.keys() & {"export", "exports", "exporti"} else []
        cell.metadata = {"tags": tags} if tags else {}
        if cell.cell_type == "code":
            old.remove_directives()
            cell.source = old.source.strip("\n")
            cell.update(execution_count=None, outputs=nbformat.from_dict(old.get("outputs", [])))
        kept.append(cell)
    return kept


def outside_code(text: str, change) -> str:
    "`change` applied to every line of Markdown that is not in a fenced block."
    lines, fence = text.split("\n"), None
    for i, line in enumerate(lines):
        mark = re.match(r"\s*(```+|~~~+)", line)
        if mark and (fence is None or mark[1].startswith(fence)):
            fence = mark[1] if fence is None else None
        elif fence is None:
            lines[i] = change(line)
    return "\n".join(lines)


class Headings:
    "Keeps the headings of one page in order: one title, and no level left out."

    def __init__(self):
        self.level = 0

    def __call__(self, line: str) -> str:
        if not (mark := re.match(r"(#{1,6}) ", line)):
            return line
        lowest = 2 if self.level else 1
        self.level = max(lowest, min(len(mark[1]), self.level + 1))
        return "#" * self.level + line[len(mark[1]) :]


class Links:
    "Rewrites the relative links of one notebook, which lies in `folder` of the repository and of the site."

    def __init__(self, notebook: Path, folder: str, pages: dict[str, str]):
        self.notebook, self.folder, self.pages = notebook, folder, pages

    def __call__(self, line: str) -> str:
        return re.sub(r"\]\(([^)\s]+)\)", lambda m: f"]({self.target(m[1])})", line)

    def target(self, link: str) -> str:
        "Where a link leads on the site; to the repository if it leads to a file that has no page."
        path, mark, anchor = link.partition("#")
        if not path or re.match(r"[a-z]+:", link):
            return link
        file = Path(os.path.normpath(self.notebook.parent / path))
        if not file.exists():
            raise StageError(f"{self.notebook.relative_to(ROOT)}: the link to {link} leads nowhere; mend it")
        inside = file.relative_to(ROOT).as_posix()
        if inside in self.pages or file.suffix in PICTURES:
            place = self.pages.get(inside, inside.removeprefix("nbs/"))
            return os.path.relpath(place, self.folder) + mark + anchor
        config = get_config(ROOT)
        return f"{config.git_url}/{'tree' if file.is_dir() else 'blob'}/{config.branch}/{inside}{mark}{anchor}"


class Names:
    "Links the first mention of each public name on a page to its entry in the reference."

    def __init__(self, known: dict[str, str]):
        self.known, self.seen = known, set()

    def __call__(self, line: str) -> str:
        if line.startswith(("#", "    ")):
            return line
        return re.sub(r"(?<![`\[\w}])`([A-Za-z_][\w.]*)(\(\))?`(?![`\]])", self.link, line)

    def link(self, mention) -> str:
        name = mention[1]
        if name in self.seen or name not in self.known:
            return mention[0]
        self.seen.add(name)
        return f"{{py:obj}}`{name}{mention[2] or ''} <{self.known[name]}>`"


def public_names(modules: list[str]) -> dict[str, str]:
    "Every way to write a public name -> its entry; a short name that two modules share is left out."
    found, shared = {}, set()
    for module in modules:
        for symbol in api.symbols(importlib.import_module(module)):
            found[symbol.target] = symbol.target
            shared |= {symbol.name} & found.keys()
            found[symbol.name] = symbol.target
    return {name: target for name, target in found.items() if name not in shared}


def defined_names(source: str) -> list[str]:
    "The public functions, classes, methods and constants that a cell defines."
    names = []
    for node in ast.parse(source).body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.append(node.name)
            inner = node.body if isinstance(node, ast.ClassDef) else []
            names += [f"{node.name}.{n.name}" for n in inner if isinstance(n, ast.FunctionDef)]
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            flat = [t for target in targets for t in (target.elts if isinstance(target, ast.Tuple) else [target])]
            names += [t.id for t in flat if isinstance(t, ast.Name)]
    return names


class Site:
    "Writes the sources of the whole site into one folder."

    def __init__(self, out: Path, chapters: dict[Path, Path]):
        self.out, self.chapters = (
            out,
            chapters,
        )  # chapters: notebook -> executed copy, in reading order, the index first
        self.modules = {n: m for n in chapters if (m := module_of(n))}
        rendered = sorted((ROOT / "results").glob("*/*.ipynb"))
        self.results = [p for p in rendered if p.parent.name != "smoke" and not p.name.startswith(".")]
        self.pages = {f"nbs/{n.name}": f"{page_name(n)}.ipynb" for n in chapters}
        self.pages |= {(inside := p.relative_to(ROOT).as_posix()): inside for p in self.results}
        self.names = public_names(list(dict.fromkeys(self.modules.values())))
        self.labels: dict[str, str] = {}  # public name -> the label of the cell that defines it

    def write(self) -> None:
        shutil.rmtree(self.out, ignore_errors=True)
        for notebook, executed in self.chapters.items():
            self.write_chapter(notebook, executed)
        for rendered in self.results:
            self.write_result(rendered)
        self.write_reference()
        self.write_contents()
        self.copy_pictures()

    def write_chapter(self, notebook: Path, executed: Path) -> None:
        module = self.modules.get(notebook)
        headings, links, names = Headings(), Links(notebook, ".", self.pages), Names(self.names)
        cells = []
        for cell in directed_cells(executed):
            if cell.cell_type == "markdown":
                for change in (headings, links, names):
                    cell.source = outside_code(cell.source, change)
                cells.append(cell)
                continue
            for output in cell.outputs:
                if text := output.get("data", {}).get("text/markdown"):
                    output.data["text/markdown"] = outside_code(text, links)
            if "exported" in cell.metadata.get("tags", []) and module:
                cells += self.label(module, cell.source)
            cells.append(cell)
        if module and cells:
            cells.insert(
                1,
                nbformat.v4.new_markdown_cell(
                    f":::{{container}} chapter-note\nThe source of {{doc}}`{module} <api/{module}>`. Cells with a "
                    f"coloured edge become the module; the others show it at work.\n:::"
                ),
            )
        self.save(self.out / f"{page_name(notebook)}.ipynb", cells)

    def label(self, module: str, source: str) -> list:
        "A cell that labels the code cell behind it, if that defines public names."
        names = [f"{module}.{n}" for n in defined_names(source)]
        names = [n for n in names if n in self.names and n not in self.labels]
        label = f"source-{len(self.labels)}"
        self.labels.update(dict.fromkeys(names, label))
        return [nbformat.v4.new_markdown_cell(f"({label})=")] if names else []

    def write_result(self, rendered: Path) -> None:
        "A rendered notebook as it is: no cell is hidden, no output touched."
        folder = rendered.parent.relative_to(ROOT).as_posix()
        changes = (Headings(), Links(rendered, folder, self.pages), Names(self.names))
        cells = nbformat.read(rendered, as_version=4).cells
        for cell in cells:
            if cell.cell_type == "markdown":
                for change in changes:
                    cell.source = outside_code(cell.source, change)
        if not cells or not cells[0].source.startswith("# "):
            raise StageError(f"{rendered.relative_to(ROOT)}: no title; begin the notebook with a cell `# Title`")
        self.save(self.out / rendered.relative_to(ROOT), cells)

    def write_reference(self) -> None:
        (self.out / "api").mkdir(parents=True, exist_ok=True)
        explained = {module: page_name(notebook) for notebook, module in reversed(self.modules.items())}
        for module, page in explained.items():
            (self.out / "api" / f"{module}.md").write_text(api.module_page(module, page, self.labels))
        ordered = list(dict.fromkeys(self.modules.values()))
        (self.out / "api" / "index.md").write_text(api.overview_page(ordered))

    def write_contents(self) -> None:
        "The sidebar: a hidden table of contents on the index page, in parts."
        numbers = {n: int(m[0]) for n in self.chapters if (m := re.match(r"\d+", n.name))}
        parts = [("Start", ["Overview <self>"])]
        parts += [
            (t, [page_name(n) for n, i in numbers.items() if first <= i <= last]) for t, (first, last) in PARTS.items()
        ]
        placed = {page for _, pages in parts for page in pages}
        if lost := [n.name for n in numbers if page_name(n) not in placed]:
            raise StageError(f"nbs/{lost[0]}: in no part of the book; give it a place in docs/parts.yaml")
        results = [p.relative_to(ROOT).with_suffix("").as_posix() for p in self.results]
        parts += [("Results", results), ("Reference", ["api/index"])]
        text = "\n\n".join(
            "\n".join(["```{toctree}", ":hidden:", f":caption: {title}", "", *pages, "```"])
            for title, pages in parts
            if pages
        )
        index = self.out / "index.ipynb"
        cells = (
            nbformat.read(index, as_version=4).cells
            if index.is_file()
            else [nbformat.v4.new_markdown_cell("# Contents")]
        )
        self.save(index, [*cells, nbformat.v4.new_markdown_cell(text)])

    def copy_pictures(self) -> None:
        "Pictures that pages show as files, at the same relative places."
        for base, folder in (("nbs", "images"), (".", "results")):
            for file in sorted((ROOT / base / folder).rglob("*")):
                if file.suffix in PICTURES:
                    target = self.out / file.relative_to(ROOT / base)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(file, target)

    @staticmethod
    def save(path: Path, cells: list) -> None:
        nb = nbformat.v4.new_notebook(cells=cells)
        nb.metadata.kernelspec = {"name": "python3", "display_name": "python3", "language": "python"}
        for place, cell in enumerate(nb.cells):
            cell.id = f"cell-{place:03d}"
        path.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(nb, path)
