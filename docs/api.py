"""The reference: one page per module and an overview, from the package's own docstrings and nbdev's `show_doc`."""

import ast
import importlib
import inspect
import re
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType

from nbdev.showdoc import show_doc


@dataclass
class Symbol:
    "One public name: a class, a function, a constant, or what a class defines."

    module: str
    name: str  # within the module: `Records` or `Records.open`
    value: object

    @property
    def target(self) -> str:
        return f"{self.module}.{self.name}"

    @cached_property
    def kind(self) -> str:
        "The directive of Sphinx's Python domain that describes it."
        if inspect.isclass(self.value):
            return "py:class"
        if "." in self.name:
            return "py:property" if isinstance(self.value, (property, cached_property)) else "py:method"
        return "py:function" if callable(self.value) else "py:data"

    @cached_property
    def text(self) -> str:
        "The docstring; nothing for a constant, whose class would answer for it."
        if self.kind == "py:data":
            return ""
        doc = getattr(self.value, "__doc__", None) or ""
        generated = inspect.isclass(self.value) and doc.startswith(f"{self.value.__name__}(")  # by @dataclass
        return "" if generated else inspect.cleandoc(doc)

    @property
    def first_line(self) -> str:
        return self.text.split("\n\n")[0].replace("\n", " ")


def _members(module: str, name: str, value: type) -> list[Symbol]:
    "The documented public methods and properties that a class defines itself."
    own = [(n, m) for n, m in vars(value).items() if not n.startswith("_")]
    described = (property, cached_property, staticmethod, classmethod)
    return [
        Symbol(module, f"{name}.{n}", m)
        for n, m in own
        if (inspect.isfunction(m) or isinstance(m, described)) and getattr(m, "__doc__", None)
    ]


def symbols(module: ModuleType) -> list[Symbol]:
    "The public names of a module in the order of its `__all__`, each class followed by what it defines."
    found = []
    for name in getattr(module, "__all__", ()):
        value = getattr(module, name)
        found.append(Symbol(module.__name__, name, value))
        if inspect.isclass(value):
            found += _members(module.__name__, name, value)
    return found


def _assignment(symbol: Symbol) -> str:
    "The lines of the module that define a constant, the first dozen of them."
    source = inspect.getsource(importlib.import_module(symbol.module))
    for node in ast.parse(source).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(n, ast.Name) and n.id == symbol.name for t in targets if t for n in ast.walk(t)):
            lines = source.splitlines()[node.lineno - 1 : node.end_lineno]
            return "\n".join([*lines[:12], "..."] if len(lines) > 13 else lines)
    return symbol.name


def _shown(symbol: Symbol) -> str:
    "The signature with its comments as nbdev shows it, or a constant's definition; nothing for a property."
    if symbol.kind == "py:data":
        return f"```python\n{_assignment(symbol)}\n```"
    if symbol.kind == "py:property":
        return ""
    shown = show_doc(getattr(symbol.value, "__func__", symbol.value))._repr_markdown_()
    code = re.search(r"^```python\n(.*?)\n```$", shown, re.DOTALL | re.MULTILINE)
    signature = code[1].strip() if code else ""
    if symbol.kind == "py:class":
        signature = re.sub(r"^def ", "class ", signature).replace(")->None:", "):")
    return f"```python\n{signature}\n```" if signature else ""


def _entry(symbol: Symbol, label: str | None) -> str:
    source = f":::{{container}} api-source\n{{ref}}`source <{label}>`\n:::" if label else ""
    body = "\n\n".join(part for part in (_shown(symbol), symbol.text, source) if part)
    return f"`````{{{symbol.kind}}} {symbol.name}\n\n{body}\n`````"


def module_page(module: str, chapter: str, labels: dict[str, str]) -> str:
    "The page of one module; `chapter` is the page that explains it, `labels` lead from a name to its code there."
    loaded = importlib.import_module(module)
    promise = (loaded.__doc__ or "").strip().split("\n\n")[0]
    entries = [_entry(s, labels.get(s.target)) for s in symbols(loaded)]
    explained = f"Explained in the chapter {{doc}}`/{chapter}`."
    return "\n\n".join([f"# {module}", promise, explained, f"```{{py:module}} {module}\n```", *entries]) + "\n"


def overview_page(modules: list[str]) -> str:
    "Every public name, by module, in the order of the chapters."
    parts = [
        "# Every public name",
        "The package, module by module in reading order. Methods are on the modules' pages.",
    ]
    for module in modules:
        loaded = importlib.import_module(module)
        rows = [
            f"| {{py:obj}}`{s.name} <{s.target}>` | {s.first_line.replace('|', chr(92) + '|')} |"
            for s in symbols(loaded)
            if "." not in s.name
        ]
        if rows:
            parts += [f"## {module}", f"{{doc}}`{module} <{module}>`: {(loaded.__doc__ or '').strip().splitlines()[0]}"]
            parts.append("\n".join(["| name | what it is |", "|---|---|", *rows]))
    toctree = "\n".join(["```{toctree}", ":hidden:", "", *modules, "```"])
    return "\n\n".join([*parts, toctree]) + "\n"
