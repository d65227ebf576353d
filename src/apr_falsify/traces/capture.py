"""What a capture shall contain, and where its stages go: into memory, or into a directory, whole or not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, NotRequired, Protocol, Self, TypedDict, Unpack

import numpy as np
import numpy.typing as npt

from apr_falsify.errors import OutputError, StageError, TokensError
from apr_falsify.folders import partial_name, partial_prefix, sweep
from apr_falsify.formats.aprt import read_aprt, write_aprt
from apr_falsify.model.passes import Passes, check_sum
from apr_falsify.model.shape import Geometry
from apr_falsify.model.stages import SQUARES, STAGES, Key, Layout, Scope
from apr_falsify.model.wiring import stages_of
from apr_falsify.traces.provenance import Provenance
from apr_falsify.traces.stage_files import INCOMPLETE
from apr_falsify.traces.trace import TRACE_JSON, StageArray, Trace, relative_path, trace_json


@cache
def source_commit() -> str | None:
    """Return the git commit of the checkout that this program runs from, ``None`` where it is in none."""
    root = Path(__file__).parents[3]
    if not (root / ".git").exists():  # an installed package may lie within somebody else's checkout
        return None
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a run shall do and which of its stages to keep.

    Attributes:
        tokens: the token ids to run.
        layers: the layers to keep, end exclusive.
        stages: the stages to keep.
        prompt: the text the ids come from, where there is one.
        feeder: whether to keep what enters the first of ``layers`` too; a replay of it needs that.
        in_passes: how to compute the tokens; ``None``: at once.

    """

    tokens: tuple[int, ...]
    layers: range
    stages: tuple[str, ...]
    prompt: str | None = None
    feeder: bool = False
    in_passes: Passes | None = None

    @property
    def passes(self) -> Passes:
        """How to compute the tokens."""
        return self.in_passes or Passes.whole(len(self.tokens))

    def keys(self, geometry: Geometry) -> tuple[Key, ...]:
        """Return every stage to keep that a model of ``geometry`` has, in forward order.

        Whole-model stages are stored only where all layers run. With ``feeder`` the residual stream that
        enters the first layer comes first.
        """
        keys: list[Key] = []
        if self.feeder and self.layers.start > 0:
            keys.append(Key(self.layers.start - 1, "post_ffn_residual"))
        for layer in geometry.check_layers(self.layers):
            for name in (name for name in stages_of(geometry, layer) if name in self.stages):
                scope = STAGES[name].scope
                if scope is Scope.LAYER or (scope is Scope.FIRST_LAYER and layer == 0):
                    keys.append(Key(layer, name))
        if len(self.layers) == geometry.layers:
            whole = (name for name in stages_of(geometry) if name in self.stages)
            keys += [Key(None, name) for name in whole if STAGES[name].scope is Scope.MODEL]
        return tuple(keys)

    def check(self, geometry: Geometry) -> None:
        """Check the request against a model before anything is run.

        Raises:
            TokensError: no token, or one outside the vocabulary.
            LayerRangeError: layers the model does not have.
            StageError: no stage would be stored.

        """
        if not self.tokens:
            raise TokensError(
                "no tokens", expected="at least one token id", remedy="--prompt TEXT or --tokens 1,2"
            )
        outside = [token for token in self.tokens if not 0 <= token < geometry.vocab]
        if outside:
            raise TokensError(
                f"token {outside[0]} is outside the vocabulary",
                expected=f"ids from 0 to {geometry.vocab - 1}",
            )
        check_sum(self.passes.sizes, len(self.tokens))
        if geometry.positions and np.max(self.passes.at) >= geometry.positions:
            raise TokensError(
                f"a token at position {int(np.max(self.passes.at))}, and the model has learned "
                f"{geometry.positions} positions",
                expected=f"at most {geometry.positions} tokens",
            )
        if not replace(self, feeder=False).keys(geometry):
            raise StageError(
                f"none of the stages {', '.join(self.stages)} exists in layers "
                f"{self.layers.start}..{self.layers.stop} of this model",
                expected=", ".join(stages_of(geometry)),
            )


class RunFacts(TypedDict):
    """What a finished run says of itself beside its stages.

    Attributes:
        provenance: where it comes from.
        geometry: the model's geometry.
        tokens: the token ids that were run.
        tokens_verified: whether the ids were checked against something the run itself wrote; left out, they
            were.
        in_passes: how they were computed, where that was not at once.

    """

    provenance: Provenance
    geometry: Geometry
    tokens: tuple[int, ...]
    tokens_verified: NotRequired[bool]
    in_passes: NotRequired[Passes | None]


def laid_end_to_end(key: Key, parts: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """Return a stage of all passes from that of each: [tokens of the pass, ...], or with the keys it has.

    A stage of the last token alone is the last pass's. Beyond the keys of a pass stand zeros.
    """
    axes = STAGES[key.stage].axes
    if "tokens" not in axes:
        return parts[-1]
    if key.stage not in SQUARES:
        return np.concatenate(parts, axis=axes.index("tokens"))
    keys = max(part.shape[-1] for part in parts)
    rows = [np.pad(part, ((0, 0), (0, 0), (0, keys - part.shape[-1]))) for part in parts]
    return np.concatenate(rows, axis=axes.index("tokens"))


class Sink(Protocol):
    """What a capture hands its stages to, in the order in which they are computed."""

    def add(self, key: Key, data: npt.NDArray[Any], layout: tuple[Layout, ...] = ()) -> None:
        """Keep one stage; ``data`` must not change afterwards."""

    def finish(self, **facts: Unpack[RunFacts]) -> Trace:
        """Return the finished trace."""


class MemorySink:
    """Keeps the stages as they are."""

    def __init__(self) -> None:
        self._stages: dict[Key, StageArray] = {}

    def add(self, key: Key, data: npt.NDArray[Any], layout: tuple[Layout, ...] = ()) -> None:
        """Keep one stage."""
        self._stages[key] = StageArray(data=data, layout=layout)

    def finish(self, **facts: Unpack[RunFacts]) -> Trace:
        """Return the trace in memory."""
        return Trace(stages=self._stages, **facts)


class WholeDirectory:
    """A directory that appears under its name whole or not at all: written beside, renamed last.

    Args:
        directory: where it shall be; it must not exist.
        what: what it holds, for messages.

    Raises:
        OutputError: it exists, or its parent cannot be written to.

    """

    def __init__(self, directory: Path, what: str) -> None:
        self.directory = directory
        self.what = what
        self._finished = False
        with self.writing():
            taken = directory.exists() or directory.is_symlink()
            self._made = [folder for folder in directory.parents if not folder.exists()]
        if taken:
            raise OutputError(
                "exists already", where=directory, remedy="remove it, or choose another place with --out"
            )
        try:
            with self.writing():
                directory.parent.mkdir(parents=True, exist_ok=True)
                sweep(directory.parent, partial_prefix(directory))
                self.partial = Path(tempfile.mkdtemp(prefix=partial_name(directory), dir=directory.parent))
                self.partial.chmod(0o777 & ~_umask())
                (self.partial / INCOMPLETE).touch()
        except BaseException:
            self._clear()
            raise

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Turn an error of the file system into one that says what could not be written."""
        try:
            yield
        except OSError as error:
            raise OutputError(
                f"{self.what} cannot be written: {error.strerror}",
                where=self.directory,
                remedy="free space or choose another place with --out; nothing was left behind",
            ) from error

    def finish(self) -> None:
        """Give the directory its name."""
        with self.writing():
            (self.partial / INCOMPLETE).unlink()
            self.partial.rename(self.directory)
        self._finished = True

    def close(self) -> None:
        """Remove what was written, unless it is finished."""
        if not self._finished:
            self._clear()

    def _clear(self) -> None:
        """Remove what was written, and the folders that were made for it."""
        if hasattr(self, "partial"):
            shutil.rmtree(self.partial, ignore_errors=True)
        for folder in self._made:
            with suppress(OSError):  # not made, or others have put something there
                folder.rmdir()


class TraceWriter:
    """Writes a trace directory; a context manager that leaves nothing behind unless it finished.

    Values are stored as f32, which is exact for f32, f16 and bf16 runs.

    Args:
        directory: where the finished trace shall be; it must not exist.

    Raises:
        OutputError: it exists, or its parent cannot be written to.

    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._stages: dict[Key, StageArray] = {}
        self._whole = WholeDirectory(directory, "the trace")

    def add(self, key: Key, data: npt.NDArray[Any], layout: tuple[Layout, ...] = ()) -> None:
        """Write one stage.

        Raises:
            OutputError: it could not be written, for want of space, say.

        """
        path = self._whole.partial / relative_path(key)
        with self._whole.writing():
            path.parent.mkdir(exist_ok=True)
            with path.open("wb") as file:
                digest = write_aprt(file, data, key.layer)
        # Only the shape is stored: the values are on disk now, and memory stays free for the run.
        placeholder = np.broadcast_to(np.float32(0), data.shape)
        self._stages[key] = StageArray(data=placeholder, layout=layout, sha256=digest)

    def finish(self, **facts: Unpack[RunFacts]) -> Trace:
        """Write ``trace.json``, move the directory to its place and return it opened.

        Raises:
            OutputError: it could not be written.

        """
        trace = Trace(stages=self._stages, path=self.directory, **facts)
        with self._whole.writing():
            text = json.dumps(trace_json(trace), indent=1) + "\n"
            (self._whole.partial / TRACE_JSON).write_text(text, encoding="utf-8")
        self._whole.finish()
        return replace(trace, stages={key: self._reopened(key, array) for key, array in self._stages.items()})

    def _reopened(self, key: Key, array: StageArray) -> StageArray:
        values = read_aprt(self.directory / relative_path(key)).values
        return StageArray(data=values.reshape(array.data.shape), layout=array.layout, sha256=array.sha256)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._whole.close()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
