"""A recording of a user's own program: arrays by name, and all that a torch module computes.

It is whole or absent: an exception within the block, or a run of other tokens, leaves nothing.
"""

from __future__ import annotations

import itertools
import os
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from apr_falsify import __version__
from apr_falsify.errors import TraceError, UsageError
from apr_falsify.formats.safetensors_writer import LONGEST_NAME, METADATA, PlainArray, SafetensorsWriter
from apr_falsify.recording.frameworks import plain_array
from apr_falsify.recording.token_ids import token_ids
from apr_falsify.subjects.foreign import MOST_ARRAYS
from apr_falsify.subjects.recording_json import RECORDING_JSON, RecordingFacts, facts_text
from apr_falsify.traces.capture import WholeDirectory
from apr_falsify.traces.provenance import utc_now

if TYPE_CHECKING:
    from apr_falsify.oracle.watched import TorchTensor, Watch


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
    return Recorder(None if out is None else Path(out), model, token_ids(tokens))


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
    """Keeps tensors as they are until the block ends; one that was changed in place by then is an error."""

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
            self.arrays[name] = _of_bytes(plain, copied=version is not None)  # a clone is its own already
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
        self._watch: Watch | None = None
        self._lock = threading.Lock()  # rec(...) may be called by several threads
        self._failed: BaseException | None = None
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
        self._open(name)
        plain = plain_array(name, array)
        with self._lock:
            store = self._open(name)
            self._claim(name)
            with self._writing():
                store.add(name, plain)

    def _open(self, name: str) -> _Store:
        if self._store is None:
            raise UsageError(
                "the recording is not open",
                where=f"rec({name!r}, ...)",
                expected="a call within its with-block",
            )
        return self._store

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Keep an error of writing: what is not whole is not finished, also where a caller catches it."""
        try:
            yield
        except BaseException as error:
            self._failed = error
            raise

    def _claim(self, name: str) -> None:
        if not isinstance(name, str) or not name or len(name) > LONGEST_NAME or name == METADATA:
            raise UsageError(
                f"no name for an array: {name!r:.80}",
                where="rec(name, array)",
                expected=f"a text of at most {LONGEST_NAME} letters other than {METADATA}",
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
        with self._lock:
            store = self._open(name)
            name = self._free(name)
            self._claim(name)
            with self._writing():
                kept = store.add_tensor(name, values)
            if not kept:
                self._names.discard(name)
                self._left_out[name] = f"a tensor of {values.dtype}, {values.layout}, on {values.device}"

    def _free(self, name: str) -> str:
        """Return a name that the watch made, with a number where it is taken: nobody chose it."""
        numbered = (f"{name}#{number}" for number in itertools.count(2))
        taken = ({METADATA}, self._left_out, self._names)
        tried = itertools.chain((name,), numbered)
        return next(one for one in tried if not any(one in names for names in taken))

    def __enter__(self) -> Self:
        if self._names or self._store is not None:
            raise UsageError("it was used already", where="record(...)", expected="one with-block")
        self._store = _InMemory() if self._out is None else _OnDisk(self._out)
        if self._model is not None:
            from apr_falsify.oracle.watched import watched

            try:
                self._watch = self._undo.enter_context(watched(self._model, self._show, self._tokens))
            except BaseException as error:
                self._store.close(error)
                self._store = None
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._lock:
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
        if self._failed is not None:
            raise self._failed
        if not self._names:
            raise self._nothing()
        dropout = self._watch is not None and self._watch.dropout
        runtime, version = _runtime(self._model)
        store.finish(
            RecordingFacts(
                tokens=self._tokens,
                driver=f"apr-falsify {__version__} (record)",
                runtime=runtime,
                version=version,
                left_out=self._left_out,
                created=utc_now(),
                training=dropout,
            )
        )
        if dropout:
            print(_DROPOUT, file=sys.stderr)
        if isinstance(store, _InMemory):
            self._kept = store.arrays

    def _nothing(self) -> TraceError:
        """Return the error of a recording without arrays, with what is known of the reason."""
        where = "record(...)" if self._out is None else self._out
        if self._left_out:
            first = "; ".join(f"{name}: {why}" for name, why in itertools.islice(self._left_out.items(), 3))
            return TraceError(
                f"nothing was recorded: {len(self._left_out)} values could not be kept ({first})",
                where=where,
                expected="dense tensors of plain numbers",
                remedy="bring the values to plain tensors of f32 and hand them to rec(name, array)",
            )
        if self._model is not None:
            return TraceError(
                "nothing was recorded: the module did not run in this thread within the block, or compiled "
                "code ran in its place, into which hooks do not see",
                where=where,
                expected="a plain call of the module within the block",
                remedy="call the module itself, not what torch.compile or torch.jit made of it; let compiled "
                "code return its values and hand them to rec(name, array)",
            )
        return TraceError("nothing was recorded", where=where, expected="rec(name, array) within the block")


_DROPOUT = (
    "apr-falsify: dropout was active in the run that was recorded: its values differ from those of any other "
    "run; call model.eval() first"
)


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
