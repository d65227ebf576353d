"""A decoder in ONNX Runtime as a subject: every value of its graph becomes an output, wired by replay."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from apr_falsify.commands.live_wired import LiveWired, reference_of
from apr_falsify.errors import MissingDependencyError, ModelError, UsageError
from apr_falsify.recording.recorder import record
from apr_falsify.subjects.interface import Target

NAME = "onnx"

_KEPT = ("float32", "float16", "float64", "int64", "int32")


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxRun:
    """Runs a model, with every value of its graph as an output.

    Attributes:
        file: the model; weights may lie in a file beside it.

    """

    file: Path

    def __call__(self, tokens: tuple[int, ...], folder: Path) -> str:
        """Run it, once, on a batch of one row and with an empty cache, on the CPU.

        Raises:
            ModelError: ONNX Runtime refuses it, or it has an input that no decoder has.

        """
        onnx, runtime = _libraries()
        try:
            model = onnx.load(str(self.file))
            named = _names(model.graph)
            outputs = {value.name for value in model.graph.output}
            model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in named if name not in outputs)
            session = self._session(onnx, runtime, model, folder)
            given = {one.name: _input(one, tokens, self.file) for one in session.get_inputs()}
            wanted = [*outputs, *(name for name in named if name not in outputs)]
            values = dict(zip(wanted, session.run(wanted, given), strict=True))
        except (OSError, ModelError):
            raise
        except Exception as error:  # ONNX Runtime has error classes of its own
            raise ModelError(
                f"ONNX Runtime does not run it: {error!s:.300}",
                where=self.file,
                expected="a decoder that takes input_ids",
            ) from error
        with record(folder, tokens=tokens) as rec:
            for name, array in values.items():
                if isinstance(array, np.ndarray) and array.dtype.name in _KEPT and array.size:
                    rec(name, array)
        return "cpu"

    def _session(self, onnx: Any, runtime: Any, model: Any, folder: Path) -> Any:
        """Return a session of a model that was changed; weights beside the original are found from there."""
        options = runtime.SessionOptions()
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 3
        place = folder.with_suffix(".onnx")
        onnx.save(model, str(place), save_as_external_data=True, location=f"{place.name}.data")
        return runtime.InferenceSession(str(place), options, providers=["CPUExecutionProvider"])


def _libraries() -> tuple[Any, Any]:
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError(
            f"cannot import {error.name} ({error})",
            where=NAME,
            expected="onnx and onnxruntime",
            remedy="pip install 'apr-falsify[onnx]'",
        ) from error
    return onnx, onnxruntime


def _names(graph: Any) -> list[str]:
    """Return the names of what the nodes give, in order; what they give within loops is not seen."""
    return list(dict.fromkeys(name for node in graph.node for name in node.output if name))


def _input(declared: Any, tokens: tuple[int, ...], where: Path) -> npt.NDArray[Any]:
    """Return what a decoder's input holds for one row of tokens and no cache.

    Raises:
        ModelError: no decoder has such an input.

    """
    name, dtype = declared.name, _TYPES.get(declared.type, np.int64)
    if name in _OF_TOKENS:
        row = np.asarray(_OF_TOKENS[name](tokens), dtype=dtype)
        return row[None] if len(declared.shape) > 1 else row
    if name.startswith(("past_key_values", "past_")) and len(declared.shape) == 4:
        batch, heads, _, width = declared.shape
        sizes = [1 if isinstance(batch, str) or batch is None else batch, heads, 0, width]
        if all(isinstance(size, int) for size in sizes):
            return np.zeros(sizes, dtype=dtype)
    raise ModelError(
        f"nobody says what its input {name!r} of shape {declared.shape} shall hold",
        where=where,
        expected=f"{', '.join(_OF_TOKENS)} and past_key_values of fixed heads and size",
        remedy="record a run of your own with apr_falsify.record, and name it recorded:FOLDER",
    )


_TYPES: Mapping[str, Any] = {
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(bool)": np.bool_,
}

_OF_TOKENS: Mapping[str, Any] = {
    "input_ids": lambda tokens: tokens,
    "attention_mask": lambda tokens: [1] * len(tokens),
    "position_ids": lambda tokens: range(len(tokens)),
    "cache_position": lambda tokens: range(len(tokens)),
}
"""Name of an input -> what it holds, as optimum and transformers name them."""


def _files(onnx: Any, file: Path) -> tuple[Path, ...]:
    """Return the model and the files that its tensors say they lie in.

    Raises:
        ModelError: it is no whole model, or such a file is not there.

    """
    try:
        model = onnx.load(str(file), load_external_data=False)
    except Exception as error:  # protobuf has error classes of its own
        raise ModelError(
            f"no whole model of ONNX: {error!s:.300}", where=file, expected="a decoder that takes input_ids"
        ) from error
    nodes = (model.graph, *model.functions)
    places = {
        entry.value for tensor in _tensors(nodes) for entry in tensor.external_data if entry.key == "location"
    }
    beside = [file.parent / place for place in sorted(places)]
    for missing in (path for path in beside if not path.is_file()):
        raise ModelError(
            "no such file",
            where=missing,
            expected=f"weights of {file.name}, which says that they lie there",
            remedy="put the model's files into one folder, under the names that they were exported with",
        )
    return file, *beside


def _tensors(graphs: Iterable[Any]) -> Iterator[Any]:
    """Give the tensors of graphs and functions: weights and constants, those of graphs within them too."""
    for graph in graphs:
        yield from getattr(graph, "initializer", ())
        for sparse in getattr(graph, "sparse_initializer", ()):
            yield from (sparse.values, sparse.indices)
        for given in (attribute for node in graph.node for attribute in node.attribute):
            yield from (given.t, *given.tensors)
            for sparse in (given.sparse_tensor, *given.sparse_tensors):
                yield from (sparse.values, sparse.indices)
            yield from _tensors((given.g, *given.graphs))


def open_onnx(target: Target) -> LiveWired:
    """Return the model of a file as a subject; nothing is run yet.

    Raises:
        UsageError: no such file, or nothing says which model it should be.
        MissingDependencyError: onnx or onnxruntime is not installed.

    """
    if not target.path.is_file() or target.path.suffix != ".onnx":
        raise UsageError("no such file", where=target.path, expected="onnx:MODEL.onnx")
    onnx, runtime = _libraries()
    return LiveWired(
        runtime=NAME,
        version=runtime.__version__,
        reference=reference_of(NAME, target),
        path=target.path,
        files=_files(onnx, target.path),
        run=OnnxRun(file=target.path),
        by_hand="hand its arrays to rec(name, array) within apr_falsify.record('run', tokens=ids)",
    )
