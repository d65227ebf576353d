"""Printing on stdout, so that a reader that goes away (``| head``) changes no exit code."""

from __future__ import annotations

import os
import sys

import click

from apr_falsify.errors import OutputError


def tell(text: str) -> None:
    """Print ``text`` and a newline on stdout; the rest is dropped where nobody reads any more."""
    try:
        click.echo(text)
        sys.stdout.flush()
    except BrokenPipeError:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
    except OSError as error:
        raise OutputError(f"the result cannot be printed: {error.strerror}", where="stdout") from error
