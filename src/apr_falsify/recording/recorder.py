"""A recording of a user's own program: arrays by name, and all that a torch module computes.

It is whole or absent: an exception within the block, or a run of other tokens, leaves nothing.
"""

from __future__ import annotations

import operator
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from apr_falsify import __version__
from apr_falsify.errors import TokensError, TraceError, UsageError
from apr_falsify.formats.safetensors_writer import LONGEST_NAME, PlainArray, SafetensorsWriter
from apr_falsify.recording.frameworks import plain_array
from apr_falsify.subjects.foreign import MOST_ARRAYS
from apr_falsify.subjects.recording_json import RECORDING_JSON, RecordingFacts, facts_text
from apr_falsify.traces.capture import WholeDirectory
from apr_falsify.traces.provenance import utc_now

if TYPE_CHECKING:
    from apr_falsify.oracle.watched import TorchTensor


def record(
    out: str | os.PathLike[str] | None = None, *, model: Any = None, tokens: Sequence[int] | None = None
) -> Recorder:
    """Record a run of one's own program::

        with record("run", model=module, tokens=ids):
            module(torch.tensor([ids]))

    What lies in the folder then is read by ``recorded:run``. ``rec(name, array)`` adds an array of NumPy,
    torch, JAX, MLX, or of anything that has ``__array__`` or DLPack, under a name of its own.

    Args:
        out: the folder to write; it must not exist. Without one the arrays stay in memory, as ``rec.arrays``.
        model: a module of torch that is run once within the block. What every module in it gives, what
            those without modules of their own are given, and what enters and leaves attention, softmax and
            products of two activations is recorded. Nothing is computed otherwise.
        tokens: the ids that are run, all of them at once.

    Raises:
        TokensError: no tokens, or no ids.
        UsageError: ``model`` is no module of torch.

    """
    return Recorder(None if out is None else Path(out), model, _ids(tokens))


def _ids(tokens: Any) -> tuple[int, ...]:
    if tokens is None:
        raise TokensError(
            "nothing says which tokens are run",
            where="record(...)",
            expected="tokens=[1, 2, 3], the ids that the model is given",
        )
    found = tokens.tolist() if hasattr(tokens, "tolist") else list(tokens)
    if len(found) == 1 and isinstance(found[0], list):
        found = found[0]
    try:
        ids = tuple(operator.index(token) for token in found)
    except TypeError as error:
        raise TokensError(
            f"not token ids: {tokens!r:.80}", where="tokens", expected="whole numbers, one sequence"
        ) from error
    if not ids or min(ids) < 0:
        raise TokensError(
            f"not token ids: {list(ids)!r:.80}", where="tokens", expected="at least one, none below 0"
        )
    return ids


class _Store(Protocol):
    def add(self, name: str, array: PlainArray) -> None: ...

    def add_tensor(self, name: str, values: TorchTensor) -> bool: ...

    def finish(self, facts: RecordingFacts) -> None: ...

    def close(self, error: BaseException | None) -> None: ...


class _OnDisk:
    """Writes each array when it is computed: it may change afterwards."""

    def __init__(self, folder: Path) -> None:
        self._whole = WholeDirectory(folder, "the recording")
        self._writer = SafetensorsWriter(self._whole.partial)

    def add(self, name: str, array: PlainArray) -> None:
        with self._whole.writing():
            self._writer.add(name, array)

    def add_tensor(self, name: str, values: TorchTensor) -> bool:
        from apr_falsify.oracle.watched import plain_of_tensor

        plain = plain_of_tensor(values)
        if plain is not None:
            self.add(name, plain)
        return plain is not None

    def finish(self, facts: RecordingFacts) -> None:
        with self._whole.writing():
            self._writer.__exit__(None, None, None)
            said = facts_text(replace(facts, files=tuple(self._writer.files)))
            (self._whole.partial / RECORDING_JSON).write_text(said, encoding="utf-8")
        self._whole.finish()

    def close(self, error: BaseException | None) -> None:
        if error is not None:
            self._writer.__exit__(type(error), error, None)
        self._whole.close()


class _InMemory:
    """Keeps tensors as they are, without a copy; one that was changed in place since is an error."""

    def __init__(self) -> None:
        self.arrays: dict[str, npt.NDArray[Any]] = {}
        self._tensors: dict[str, tuple[TorchTensor, int | None]] = {}

    def add(self, name: str, array: PlainArray) -> None:
        self.arrays[name] = _of_bytes(array, copied=True)

    def add_tensor(self, name: str, values: TorchTensor) -> bool:
        from apr_falsify.oracle.watched import is_plain, version_of

        if not is_plain(values):
            return False
        version = version_of(values)
        self._tensors[name] = (values.detach() if version is not None else values.clone(), version)
        return True

    def finish(self, facts: RecordingFacts) -> None:
        from apr_falsify.oracle.watched import plain_of_tensor, version_of

        for name, (values, version) in self._tensors.items():
            if version is not None and version_of(values) != version:
                raise TraceError(
                    "it was changed in place after it was recorded",
                    where=name,
                    expected="values that stay, where a recording is kept in memory",
                    remedy="record into a folder: there each value is written as soon as it is computed",
                )
            plain = plain_of_tensor(values)
            assert plain is not None
            self.arrays[name] = _of_bytes(plain, copied=False)
        self._tensors.clear()

    def close(self, error: BaseException | None) -> None:
        self._tensors.clear()


def _of_bytes(array: PlainArray, *, copied: bool) -> npt.NDArray[Any]:
    """Return an array of NumPy; bf16 is widened to f32, which is exact."""
    data = array.data.copy() if copied else array.data
    if array.dtype == "BF16":
        return (data.view("<u2").astype(np.uint32) << np.uint32(16)).view(np.float32).reshape(array.shape)
    word = array.dtype.lower()
    return data.view(np.dtype(f"<{word[0]}{int(word[1:]) // 8}")).reshape(array.shape)


class Recorder:
    """A recording that is being made; see :func:`record`.

    Args:
        out: the folder to write, ``None`` for memory.
        model: the module of torch that is watched, ``None`` for none.
        tokens: the ids that are run.

    """

    def __init__(self, out: Path | None, model: Any, tokens: tuple[int, ...]) -> None:
        self._out, self._model, self._tokens = out, model, tokens
        self._store: _Store | None = None
        self._kept: dict[str, npt.NDArray[Any]] | None = None
        self._names: set[str] = set()
        self._left_out: dict[str, str] = {}
        self._undo = ExitStack()
        if model is not None:
            _check_module(model)

    @property
    def arrays(self) -> Mapping[str, npt.NDArray[Any]]:
        """The arrays of a finished recording in memory; bf16 as f32.

        Raises:
            UsageError: it is not finished, or lies in a folder.

        """
        if self._kept is None:
            raise UsageError(
                "no arrays are here",
                where="arrays",
                expected="a recording without a folder, after its block",
                remedy="read a folder with apr-falsify bisect --subject recorded:FOLDER",
            )
        return self._kept

    def __call__(self, name: str, array: Any) -> None:
        """Record ``array`` as ``name``, as it is now.

        Raises:
            UsageError: outside the block, a name that is there already, or no array of plain numbers.
            OutputError: it cannot be written.

        """
        store = self._open(name)
        self._claim(name)
        store.add(name, plain_array(name, array))

    def _open(self, name: str) -> _Store:
        if self._store is None:
            raise UsageError(
                "the recording is not open",
                where=f"rec({name!r}, ...)",
                expected="a call within its with-block",
            )
        return self._store

    def _claim(self, name: str) -> None:
        if not isinstance(name, str) or not name or len(name) > LONGEST_NAME:
            raise UsageError(
                f"no name for an array: {name!r:.80}", where="rec(name, array)", expected="a text"
            )
        if name in self._names:
            raise UsageError(
                "an array of this name is recorded already",
                where=f"rec({name!r}, ...)",
                expected="a name for each array",
                remedy="put the layer, or the number of the call, into the name",
            )
        if len(self._names) == MOST_ARRAYS:
            raise UsageError(
                f"more than {MOST_ARRAYS} arrays",
                where=f"rec({name!r}, ...)",
                expected="the arrays of one pass over the tokens",
                remedy="record fewer layers, or one pass",
            )
        self._names.add(name)

    def _show(self, name: str, values: TorchTensor) -> None:
        assert self._store is not None
        self._claim(name)
        if not self._store.add_tensor(name, values):
            self._names.discard(name)
            self._left_out[name] = f"a tensor of {values.dtype}, {values.layout}, on {values.device}"

    def __enter__(self) -> Self:
        if self._names or self._store is not None:
            raise UsageError("it was used already", where="record(...)", expected="one with-block")
        self._store = _InMemory() if self._out is None else _OnDisk(self._out)
        if self._model is not None:
            from apr_falsify.oracle.watched import watched

            try:
                self._undo.enter_context(watched(self._model, self._show, self._tokens))
            except BaseException as error:
                self._store.close(error)
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        store, self._store = self._store, None
        assert store is not None
        try:
            self._undo.__exit__(kind, error, traceback)
            if error is None:
                self._finish(store)
        except BaseException as caught:
            error = caught
            raise
        finally:
            store.close(error)

    def _finish(self, store: _Store) -> None:
        if not self._names:
            raise TraceError(
                "nothing was recorded",
                where="record(...)" if self._out is None else self._out,
                expected="a run of the model within the block, or rec(name, array)",
            )
        runtime, version = _runtime(self._model)
        store.finish(
            RecordingFacts(
                tokens=self._tokens,
                driver=f"apr-falsify {__version__} (record)",
                runtime=runtime,
                version=version,
                left_out=self._left_out,
                created=utc_now(),
            )
        )
        if isinstance(store, _InMemory):
            self._kept = store.arrays


def _check_module(model: Any) -> None:
    if "torch" in sys.modules:
        from apr_falsify.oracle.watched import is_module

        if is_module(model):
            return
    raise UsageError(
        f"a {type(model).__name__} is no module of torch",
        where="model",
        expected="a torch.nn.Module; values of anything else are handed to rec(name, array)",
    )


def _runtime(model: Any) -> tuple[str, str]:
    if model is None:
        return "unnamed", ""
    home = type(model).__module__.partition(".")[0]
    found = sys.modules.get(home)
    version = getattr(found, "__version__", "") if home != "__main__" else ""
    return (home, str(version)) if version else ("torch", str(sys.modules["torch"].__version__))
