"""A torch module of a user's as a subject: ``torch:FILE.py:BUILD``, where BUILD() returns the module."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apr_falsify.commands.live_wired import LiveWired, reference_of
from apr_falsify.errors import AprFalsifyError, UsageError, nearest
from apr_falsify.recording.recorder import record
from apr_falsify.subjects.interface import Target

NAME = "torch"

_EXPECTED = "torch:FILE.py:BUILD, where BUILD() returns a torch.nn.Module, or that and what runs it on ids"


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchRun:
    """Builds the module of a file and runs it.

    Attributes:
        file: the user's file.
        build: the name of the function in it.

    """

    file: Path
    build: str

    def __call__(self, tokens: tuple[int, ...], folder: Path) -> None:
        """Run it, once, on a batch of one row, or as the file says.

        Raises:
            UsageError: the file has no such function, or it or the module raises.

        """
        module, call = self._built()
        with record(folder, model=module, tokens=tokens):
            self._done("the module", lambda: call(list(tokens)))

    def _built(self) -> tuple[Any, Callable[[list[int]], Any]]:
        from apr_falsify.oracle.watched import on_a_row

        names = self._done("the file", lambda: _run(self.file))
        if not callable(names.get(self.build)):
            known = [name for name, value in names.items() if callable(value) and name[0] != "_"]
            raise UsageError(
                f"no function {self.build!r} in it",
                where=self.file,
                expected=_EXPECTED,
                remedy=nearest(self.build, known),
            )
        built = self._done(f"{self.build}()", names[self.build])
        if isinstance(built, tuple) and len(built) == 2 and callable(built[1]):
            return built[0], built[1]
        return built, on_a_row(built)

    def _done(self, what: str, do: Callable[[], Any]) -> Any:
        """Return what code of the user's returns; what it raises is placed in his file."""
        try:
            return do()
        except AprFalsifyError:
            raise
        except Exception as error:
            lines = []
            at = error.__traceback__
            while at is not None:
                if at.tb_frame.f_code.co_filename == str(self.file):
                    lines.append(at.tb_lineno)
                at = at.tb_next
            raise UsageError(
                f"{what} raised {type(error).__name__}: {error!s:.300}",
                where=f"{self.file}:{lines[-1]}" if lines else self.file,
                expected=_EXPECTED,
            ) from error


def _run(file: Path) -> dict[str, Any]:
    """Run a file as a module of its own, with its folder first on the path."""
    names: dict[str, Any] = {"__name__": f"apr_falsify_subject_{file.stem}", "__file__": str(file)}
    sys.path.insert(0, str(file.parent))
    try:
        exec(compile(file.read_bytes(), str(file), "exec"), names)
    finally:
        sys.path.remove(str(file.parent))
    return names


def open_torch(target: Target) -> LiveWired:
    """Return the module of a file as a subject; nothing is run yet.

    Raises:
        UsageError: no such file, no function named, or nothing says which model it should be.

    """
    path, _, build = str(target.path).rpartition(":")
    file = Path(path)
    if not path or not build.isidentifier() or file.suffix != ".py":
        raise UsageError("no function is named", where=target.path, expected=_EXPECTED)
    if not file.is_file():
        raise UsageError("no such file", where=file, expected=_EXPECTED)
    return LiveWired(
        runtime=NAME,
        version=importlib.metadata.version("torch"),
        reference=reference_of(NAME, target),
        files=(file,),
        run=TorchRun(file=file, build=build),
    )
