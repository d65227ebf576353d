"""One kernel's data as files: ``.npy`` for every array, and ``kernel.json``, which says what each is."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from apr_falsify.compare.kernel_case import KernelCase
from apr_falsify.formats.tensors import Tensor
from apr_falsify.model.stages import STAGES, Key, Layout
from apr_falsify.traces.capture import WholeDirectory
from apr_falsify.traces.trace import Trace

SCHEMA = "apr-falsify/kernel/v1"
KERNEL_JSON = "kernel.json"

_ROWS = re.compile(r"\[[^][{}\"]+\]")
"""Lists of numbers, which are easier to read in one line."""

_BLOCK_VALUES = 1 << 22
_HALF_KNOWN: dict[Layout, str] = {
    Layout.CAUSAL_ZEROED: "the run stored nothing above the diagonal: zero",
    Layout.VISIBLE_ONLY: "the run stored no data where no query may look: zero here",
    Layout.LAST_TOKEN: "the run stored the last token's row alone",
}


def write_kernel(case: KernelCase, trace: Trace, directory: Path) -> None:
    """Write ``case`` to ``directory``, whole or not at all.

    Raises:
        OutputError: it exists, or cannot be written.

    """
    with closing(WholeDirectory(directory, "the kernel's data")) as whole:
        with whole.writing():
            files = list(_write_arrays(case, whole.partial))
            text = _ROWS.sub(
                lambda row: " ".join(row[0].split()), json.dumps(_description(case, trace, files), indent=1)
            )
            (whole.partial / KERNEL_JSON).write_text(text + "\n", encoding="utf-8")
        whole.finish()


def _write_arrays(case: KernelCase, folder: Path) -> Iterator[dict[str, Any]]:
    """Write every array, and yield what ``kernel.json`` says about it."""
    for name in ("inputs", "weights"):
        (folder / name).mkdir()
    for role, values in case.inputs.items():
        what = f"what the run captured as {_place(case.suppliers[role])}"
        yield _entry(_save(folder, f"inputs/{role}.npy", values), role, what, values)
    for role, values in case.rows.items():
        yield _entry(
            _save(folder, f"weights/{role}.npy", values), role, "the table's rows of the tokens", values
        )
    for role, tensor in case.weights.items():
        path = f"weights/{role}.npy"
        kind = _save_tensor(folder / path, tensor)
        described = f"{tensor.name}, decoded from {tensor.type}" if tensor.type != kind else tensor.name
        yield {"file": path, "name": role, "what": described, "shape": list(tensor.shape), "dtype": kind}
    what = "what the formula gives in f64: what the stage should have been"
    yield _entry(_save(folder, "expected.npy", case.expected), "expected", what, case.expected)
    if case.captured is not None:
        half = [_HALF_KNOWN[word] for word in case.layout if word in _HALF_KNOWN]
        what = "; ".join(["what the run captured", *half])
        yield _entry(_save(folder, "captured.npy", case.captured), "captured", what, case.captured)


def _save(folder: Path, path: str, values: npt.NDArray[Any]) -> str:
    with (folder / path).open("wb") as file:
        np.save(file, np.ascontiguousarray(values), allow_pickle=False)
    return path


def _entry(path: str, name: str, what: str, values: npt.NDArray[Any]) -> dict[str, Any]:
    kind = f"f{8 * values.dtype.itemsize}"
    return {"file": path, "name": name, "what": what, "shape": list(values.shape), "dtype": kind}


def _save_tensor(path: Path, tensor: Tensor) -> str:
    """Write a weight block by block, so that it is never in memory whole; return its number format."""
    out = tensor.shape[0]
    step = max(1, _BLOCK_VALUES // max(1, int(np.prod(tensor.shape[1:]))))
    with path.open("wb") as file:
        kind = np.asarray(tensor.rows(0, 1)).dtype
        _write_header(file, tensor.shape, kind)
        for start in range(0, out, step):
            rows = tensor.rows(start, min(out, start + step))
            file.write(np.ascontiguousarray(rows, dtype=kind).data)
    return f"f{8 * kind.itemsize}"


def _write_header(file: IO[bytes], shape: tuple[int, ...], kind: np.dtype[Any]) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def _place(key: Key) -> str:
    return key.stage if key.layer is None else f"{key.stage} of layer {key.layer}"


def _description(case: KernelCase, trace: Trace, files: list[dict[str, Any]]) -> dict[str, Any]:
    layer, name = case.key
    difference = case.difference
    return {
        "schema": SCHEMA,
        "stage": name,
        "layer": layer,
        "what": STAGES[name].what,
        "files": files,
        "constants": dict(case.constants),
        "formula": list(case.formula),
        "note": "names in the formula are those of files and constants; expert weights are name.NUMBER",
        "difference": None if difference is None else {**difference.to_json(), "where": difference.where},
        "stored_by_the_run_as": [word.value for word in case.layout],
        "tokens": list(trace.tokens),
        "run": trace.provenance.to_json(),
    }
