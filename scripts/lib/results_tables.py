"""Tables as text: Markdown for pages, LaTeX for papers."""

import re
from collections.abc import Iterable, Sequence
from types import MappingProxyType

_ESCAPES = MappingProxyType(
    {
        **{character: f"\\{character}" for character in "&%$#_{}"},
        "\\": "\\textbackslash{}",
        "~": "\\textasciitilde{}",
        "^": "\\textasciicircum{}",
        "<": "\\textless{}",
        ">": "\\textgreater{}",
        "±": "$\\pm$",
    }
)


def markdown(rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown; the first row is its head."""
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def latex(rows: Iterable[Sequence[str]], caption: Sequence[str] = ()) -> str:
    """Return a tabular of the package booktabs; the first row is its head, the caption becomes comments."""
    head, *body = rows
    comments = "".join(f"% {line}\n" for line in caption)
    columns = "l" * 2 + "r" * (len(head) - 2)
    lines = [f"\\begin{{tabular}}{{{columns}}}", "\\toprule", _line(head), "\\midrule"]
    lines += [*map(_line, body), "\\bottomrule", "\\end{tabular}"]
    return comments + "".join(f"{line}\n" for line in lines)


def _line(cells: Sequence[str]) -> str:
    return " & ".join(map(escaped, cells)) + r" \\"


def escaped(text: str) -> str:
    """Return text for LaTeX: special characters escaped, minus signs and the hyphens of flags kept."""
    text = "".join(_ESCAPES.get(character, character) for character in text.replace("`", ""))
    text = re.sub(r"(?<![\w-])-(?=\d)", "$-$", text)
    return re.sub(r"(?<!\w)--(?=\w)", "-{}-", text)
