"""Printing on stdout, so that a reader that goes away (``| head``) changes no exit code."""

from __future__ import annotations

import os
import sys

import click


def tell(text: str) -> None:
    """Print ``text`` and a newline on stdout; the rest is dropped where nobody reads any more."""
    try:
        click.echo(text)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
