"""What the verbs print and write: in 80 columns, whole, and heedless of a reader that goes away."""

from __future__ import annotations

import os
import sys
import textwrap
from pathlib import Path

import click

from apr_falsify.errors import OutputError
from apr_falsify.folders import write_whole

WIDTH = 80
"""Columns of a line, but where one word is longer."""


def wrapped(text: str, head: str, indent: str) -> list[str]:
    """Return ``text`` behind ``head`` in lines of 80 columns, broken between words: a path stays whole."""
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=head,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def write_file(path: Path, content: str) -> None:
    """Write a file, whole or not at all; what killed writers of it left beside it is removed.

    Raises:
        OutputError: it cannot be written.

    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content.encode("utf-8"))
    except OSError as error:
        raise OutputError(
            f"the result cannot be written: {error.strerror}", where=path, remedy="choose another --out"
        ) from error


def tell(text: str) -> None:
    """Print ``text`` and a newline on stdout; the rest is dropped where nobody reads any more."""
    if sys.stdout is None:  # closed before this program began
        return
    try:
        click.echo(text)
        sys.stdout.flush()
    except BrokenPipeError:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
    except OSError as error:
        raise OutputError(f"the result cannot be printed: {error.strerror}", where="stdout") from error
