"""A torch module of a user's as a subject: ``torch:FILE.py:BUILD``, where BUILD() returns the module."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from apr_falsify.commands.live_wired import LiveWired, reference_of
from apr_falsify.errors import AprFalsifyError, UsageError, nearest
from apr_falsify.recording.recorder import record
from apr_falsify.subjects.interface import Target
from apr_falsify.traces.trace import sha256_of

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

    def __call__(self, tokens: tuple[int, ...], folder: Path) -> str:
        """Run it, once, on a batch of one row, or as the file says; return the device of its weights.

        What the file prints goes to stderr: stdout is the answer's.

        Raises:
            UsageError: the file has no such function, or it or the module raises or exits.

        """
        with redirect_stdout(sys.stderr), _imported(self.file) as names:
            module, call = self._built(names)
            with record(folder, model=module, tokens=tokens):
                self._done("the module", lambda: call(list(tokens)))
            return device_of(module)

    def _built(self, module: ModuleType) -> tuple[Any, Callable[[list[int]], Any]]:
        from apr_falsify.oracle.watched import on_a_row

        names = vars(module)
        self._done("the file", lambda: exec(compile(self.file.read_bytes(), str(self.file), "exec"), names))
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
        except (Exception, SystemExit) as error:  # an exit within the file would end the comparison unmade
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


@contextmanager
def _imported(file: Path) -> Iterator[ModuleType]:
    """Give an empty module for a file, which is known to ``import``, with its folder first on the path.

    Afterwards what was imported from that folder, or from others that the file put on the path, is
    forgotten: the next run reads it anew, and a file of another folder gets its own. No byte code is kept:
    it would be taken for that of a file changed since.
    """
    folder, name = str(file.resolve().parent), f"apr_falsify_subject_{uuid.uuid4().hex}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None  # the suffix is .py
    module = importlib.util.module_from_spec(spec)
    known, path, writes_none = set(sys.modules), list(sys.path), sys.dont_write_bytecode
    sys.modules[name] = module
    sys.path.insert(0, folder)
    sys.dont_write_bytecode = True
    importlib.invalidate_caches()
    try:
        yield module
    finally:
        sys.dont_write_bytecode = writes_none
        folders = {folder, *sys.path} - set(path)
        sys.path[:] = path  # whatever the file did to it
        for other in set(sys.modules) - known:
            of_known = other.partition(".")[0] in known
            if other == name or (not of_known and _is_of(sys.modules[other], folders)):
                sys.modules.pop(other, None)


def _is_of(module: object, folders: Iterable[str]) -> bool:
    """Whether a module was read from one of the folders, and is none of an environment's installed there."""
    found = getattr(module, "__file__", None)
    if not isinstance(found, str) or {"site-packages", "dist-packages"} & set(Path(found).parts):
        return False
    return any(Path(found).is_relative_to(folder) for folder in folders)


def device_of(module: Any) -> str:
    """Return where the first weight of a module of torch lies: ``cpu``, ``cuda`` or ``unknown``."""
    first = next(module.parameters(), None)
    kind = "cpu" if first is None else first.device.type
    return kind if kind in ("cpu", "cuda") else "unknown"


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
        path=target.path,
        files=None,
        made_from=f"{file.name} {sha256_of(file)[:16]}",
        settings={"built by": f"{file.name}:{build}"},
        run=TorchRun(file=file, build=build),
        by_hand="run the module within apr_falsify.record('run', model=module, tokens=ids)",
    )
