"""A small document: headings, paragraphs, lists, tables, pictures and code, as Markdown, HTML and LaTeX tables.

Texts are plain: what has a meaning in Markdown, HTML or LaTeX is escaped here and nowhere else.
"""

from __future__ import annotations

import base64
import html as markup
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from markdown_it.token import Token


@dataclass(frozen=True)
class Heading:
    """A heading; level 1 is the title's."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Paragraph:
    """Running text; ``loud`` for what nobody may miss."""

    text: str
    loud: bool = False


@dataclass(frozen=True)
class Bullets:
    """A list of sentences."""

    items: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """A table; the first ``words`` columns are set to the left, the others to the right."""

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    label: str  # in LaTeX
    words: int = 1

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.header):
                raise ValueError(f"table {self.label}: a row has {len(row)} cells, the header {len(self.header)}")


@dataclass(frozen=True)
class Picture:
    """A PNG and what it shows."""

    path: Path
    caption: str


@dataclass(frozen=True)
class Code:
    """Text that is shown as it is."""

    text: str
    language: str = ""


Part = Heading | Paragraph | Bullets | Table | Picture | Code

_CSS = """
:root { color-scheme: light dark; --ink: #1b1b1b; --paper: #fff; --line: #ccc; --soft: #f4f4f4; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e4e4; --paper: #16181b; --line: #444; --soft: #22252a; } }
@media print { :root { --ink: #000; --paper: #fff; --line: #999; --soft: #fff; } }
body { max-width: 70rem; margin: 2rem auto; padding: 0 1rem; font: 1rem/1.5 system-ui, sans-serif; }
body { color: var(--ink); background: var(--paper); }
table { display: block; overflow-x: auto; border-collapse: collapse; margin: .5rem 0 1.5rem; font-size: .9rem; }
th, td { padding: .25rem .7rem; white-space: nowrap; font-variant-numeric: tabular-nums; }
thead { border-top: 2px solid; border-bottom: 1px solid; } tbody { border-bottom: 2px solid; }
tbody tr:nth-child(even) { background: var(--soft); }
img { max-width: 100%; background: #fff; border-radius: 4px; }
pre { overflow-x: auto; padding: .8rem; background: var(--soft); border: 1px solid var(--line); font-size: .85rem; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
@media print { table { display: table; font-size: .7rem; } img, table, pre { break-inside: avoid; } }
"""

_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    "\u2020": r"\textdagger{}",
}  # fmt: skip


def escaped(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return re.sub(r"([\\`*_\[\]<>|&~#])", r"\\\1", " ".join(text.split()))


def markdown(title: str, parts: Sequence[Part], folder: Path) -> str:
    """The document as Markdown; pictures are seen from ``folder``."""
    return "\n\n".join([f"# {escaped(title)}", *(_block(part, folder) for part in parts)]) + "\n"


def _block(part: Part, folder: Path) -> str:
    match part:
        case Heading():
            return f"{'#' * part.level} {escaped(part.text)}"
        case Paragraph():
            return f"**{escaped(part.text)}**" if part.loud else escaped(part.text)
        case Bullets():
            return "\n".join(f"- {escaped(item)}" for item in part.items)
        case Table():
            return _grid(part)
        case Picture():
            return f"![{escaped(part.caption)}]({_beside(part.path, folder)})\n\n{escaped(part.caption)}"
        case Code():
            fence = "`" * (1 + max([2, *(len(run) for run in re.findall("`+", part.text))]))
            return f"{fence}{part.language}\n{part.text.rstrip()}\n{fence}"


def _beside(path: Path, folder: Path) -> str:
    """The picture's address; ValueError if it does not lie in the document's folder."""
    try:
        return path.relative_to(folder).as_posix().replace(" ", "%20")
    except ValueError:
        raise ValueError(f"picture {path} must lie in {folder}, where the report is") from None


def _grid(table: Table) -> str:
    rule = ["---" if index < table.words else "---:" for index in range(len(table.header))]
    rows = [[escaped(cell) or " " for cell in row] for row in (table.header, *table.rows)]
    lines = ["| " + " | ".join(row) + " |" for row in (rows[0], rule, *rows[1:])]
    return f"{escaped(table.caption)}\n\n" + "\n".join(lines)


def html(title: str, parts: Sequence[Part], folder: Path) -> str:
    """The document as one HTML file with the pictures inside; ModuleNotFoundError, OSError."""
    try:
        from markdown_it import MarkdownIt
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("report.html needs markdown-it-py; install it with: pip install 'apts_mpi[study]'") from error
    parser: Any = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = parser.parse(markdown(title, parts, folder))
    _embed(tokens, folder)
    body = parser.renderer.render(tokens, parser.options, {})
    head = f'<meta charset="utf-8">\n<meta name="viewport" content="width=device-width">\n<title>{markup.escape(title)}</title>'
    return f'<!DOCTYPE html>\n<html lang="en">\n<head>\n{head}\n<style>{_CSS}</style>\n</head>\n<body>\n{body}</body>\n</html>\n'


def _embed(tokens: Sequence[Token], folder: Path) -> None:
    for token in tokens:
        _embed(token.children or (), folder)
        if token.type == "image":
            data = (folder / str(token.attrs["src"]).replace("%20", " ")).read_bytes()
            token.attrs["src"] = "data:image/png;base64," + base64.b64encode(data).decode()


def tex(text: str) -> str:
    """Text with what is special in LaTeX escaped."""
    return "".join(_TEX.get(letter, letter) for letter in " ".join(text.split()))


def latex(parts: Sequence[Part]) -> str:
    """All tables for LaTeX with the package booktabs."""
    return "% \\usepackage{booktabs}\n\n" + "\n".join(_tabular(part) for part in parts if isinstance(part, Table))


def _tabular(table: Table) -> str:
    columns = "l" * table.words + "r" * (len(table.header) - table.words)
    head, *rows = [" & ".join(tex(cell) for cell in row) + r" \\" for row in (table.header, *table.rows)]
    return "\n".join([
        r"\begin{table}", r"\centering\small", rf"\caption{{{tex(table.caption)}}}", rf"\label{{tab:{table.label}}}",
        rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule", *rows, r"\bottomrule", r"\end{tabular}", r"\end{table}", "",
    ])  # fmt: skip


def numbered(parts: Sequence[Part]) -> list[Part]:
    """The parts with 'Table 1.' and 'Figure 1.' before the captions."""
    found: list[Part] = []
    counts = {Table: 0, Picture: 0}
    for part in parts:
        if isinstance(part, Table | Picture):
            counts[type(part)] += 1
            name = "Table" if isinstance(part, Table) else "Figure"
            part = replace(part, caption=f"{name} {counts[type(part)]}. {part.caption}")
        found.append(part)
    return found
