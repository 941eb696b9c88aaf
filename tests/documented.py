"""The commands that README.md and docs/ tell a reader to type."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from conftest import REPOSITORY

PAGES = (REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md")))
# What is a command in running text: a program and its script; not the name of a program and a flag.
INLINE = re.compile(r"(\w+=\S+ )*(python|torchrun|srun|bash) (.* )?(-c |\S+\.(py|sh)\b)")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Command:
    """A command line of a page, without the variables before it."""

    page: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}: {' '.join(self.words)}"

    @property
    def script(self) -> str:
        """Of ``python scripts/summary.py -a x`` and of a launcher's line the script."""
        return next((word for word in self.words if word.endswith((".py", ".sh"))), "")


def commands(text: str, page: str = "") -> list[Command]:
    """Every line of a ``bash`` block, and inline code that begins as a command does; each once."""
    blocks = [body.replace("\\\n", " ") for language, body in FENCE.findall(text) if language == "bash"]
    lines = [line for block in blocks for line in block.splitlines()]
    lines += [code for code in inline(text) if INLINE.match(code)]
    split = [shlex.split(line, comments=True) for line in lines]
    return [Command(page, words) for words in dict.fromkeys(map(without_variables, split)) if words]


def inline(text: str) -> list[str]:
    """The code within running text; it may be broken between two lines."""
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", FENCE.sub("", text))]


def without_variables(words: list[str]) -> tuple[str, ...]:
    """``NAME=value`` before a command is for the shell."""
    first = next((i for i, word in enumerate(words) if not re.match(r"\w+=", word)), len(words))
    return tuple(words[first:])


def snippets(text: str) -> list[str]:
    """``python`` blocks, and imports in running text."""
    blocks = [body for language, body in FENCE.findall(text) if language == "python"]
    return blocks + [code for code in inline(text) if code.startswith("from ") and " import " in code]


def of_page(path: Path) -> list[Command]:
    return commands(path.read_text(), str(path.relative_to(REPOSITORY)))
