"""Writing pictures: a single file, or a folder of them with an HTML page."""

import argparse
import html
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from utils.command_line import cli
from utils.common.checks import check_libraries, check_output
from utils.common.errors import UserError
from utils.common.files import write_output
from utils.common.text import drawable

KINDS = ("png", "svg")
PAGE = """<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 sans-serif; max-width: 1400px; margin: 2em auto; padding: 0 1em; color: #222 }}
img {{ max-width: 100%; border: 1px solid #ddd }}
figure {{ margin: 2em 0 }}
code {{ background: #f3f3f3; padding: 0.1em 0.3em; overflow-wrap: anywhere }}
</style>
<h1>{title}</h1>
<p><code>{command}</code></p>
<ol>
{links}
</ol>
{figures}
</html>
"""
FIGURE = """<figure id="{name}">
<a href="{name}"><img src="{name}" alt="{alt}" loading="lazy"></a>
<figcaption>{caption}{details}</figcaption>
</figure>"""


def picture_file(text: str) -> Path:
    """An argparse type: the path of a picture, .png or .svg."""
    path = Path(cli.name_of_file(text))
    if path.suffix[1:].lower() not in KINDS:
        raise argparse.ArgumentTypeError(f"must end in .png or .svg, not '{path.name}'")
    return path


def check_picture(path: Path, overwrite: bool) -> None:
    """Refuse before the work a picture that cannot be written after it.

    Args:
        path: the file of ``-o``.
        overwrite: whether it may be there already.

    Raises:
        UserError: it cannot be written, or may not, or matplotlib is missing.
    """
    check_output(path, "-o", overwrite)
    check_libraries("pictures", "matplotlib")


def write_picture(path: Path, content: bytes) -> None:
    """Write the file of ``-o``, or a file in its folder.

    Raises:
        UserError: it cannot be written.
    """
    write_output(path, content, f"-o {path}")


class Entry(NamedTuple):
    """What the page shows for one image."""

    name: str  # of its picture
    image: str  # its file
    text: str  # what the network finds on it
    details: Sequence[str] = ()  # lines below its picture


def picture_name(number: int, path: str) -> str:
    """Return the name of an image's picture, of characters that need no escape in a link."""
    return f"{number:03d}_{re.sub(r'[^A-Za-z0-9._-]+', '_', Path(path).stem)[:80]}.png"


def make_folder(folder: Path) -> None:
    """Make the folder of the pictures, unless it exists.

    Raises:
        UserError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"-o {folder}: {error.strerror}; give another folder") from None


def write_page(folder: Path, entries: Sequence[Entry], title: str, what: str) -> None:
    """Write ``index.html`` beside the pictures, which shows all of them; ``what`` says what they show.

    Raises:
        UserError: it cannot be written.
    """
    links, figures = [], []
    for entry in entries:
        image, name, text = html.escape(entry.image), quote(entry.name), html.escape(entry.text)
        links.append(f'<li><a href="#{name}">{image}</a>: {text}</li>')
        alt = f"{html.escape(what)} {image}; {text}"
        details = "".join(f"<br>\n{html.escape(line)}" for line in entry.details)
        figures.append(FIGURE.format(name=name, alt=alt, caption=image, details=details))
    command = html.escape(drawable(shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])))
    parts = {"links": "\n".join(links), "figures": "\n".join(figures)}
    content = PAGE.format(title=html.escape(title), command=command, **parts)
    write_picture(folder / "index.html", content.encode())
