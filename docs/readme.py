"""README.md from nbs/index.ipynb, executed: `make readme`, or

    python docs/readme.py
    python docs/readme.py --check    say whether README.md is what the notebook renders to

Prose is copied, links are made right for the root folder, and a cell's output appears if it is Markdown. Every number
is therefore read from a result file when the README is made.
"""

import os
import re
import sys
from pathlib import Path

from execute import ROOT, execute
from stage import StageError, directed_cells, outside_code

INDEX, README = ROOT / "nbs" / "index.ipynb", ROOT / "README.md"


def from_root(line: str) -> str:
    "A line whose links, relative to nbs/, are relative to the root."

    def moved(link) -> str:
        path, mark, anchor = link[1].partition("#")
        if not path or re.match(r"[a-z]+:", path):
            return link[0]
        file = Path(os.path.normpath(ROOT / "nbs" / path))
        if not file.exists():
            raise StageError(f"nbs/index.ipynb: the link to {path} leads nowhere; mend it")
        return f"]({file.relative_to(ROOT).as_posix()}{mark}{anchor})"

    return re.sub(r"\]\(([^)\s]+)\)", moved, line)


def shown(cell) -> str:
    "What the README shows of one cell."
    if cell.cell_type == "markdown":
        return outside_code(cell.source, from_root)
    tags, parts = cell.metadata.get("tags", []), []
    if "remove-input" not in tags:
        parts.append(f"```python\n{cell.source}\n```")
    for output in cell.outputs:
        text = output.get("data", {}).get("text/markdown")
        if text is None:
            raise StageError("nbs/index.ipynb: an output is not Markdown; show tables as Markdown, pictures as files")
        parts.append(outside_code(text, from_root))
    return "\n\n".join(parts)


def readme() -> str:
    "The text of README.md."
    [run] = execute([INDEX])
    if run.error:
        raise StageError(run.error)
    return "\n\n".join(filter(None, (shown(c).strip() for c in directed_cells(run.copy)))) + "\n"


def main() -> int:
    try:
        README.write_text(readme(), encoding="utf-8")
    except StageError as error:
        print(error, file=sys.stderr)
        return 1
    print(README.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
