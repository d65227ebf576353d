"""The runtimes that need the oracle's room, or the wiring by replay, which ``subjects`` does not know."""

from __future__ import annotations

from collections.abc import Mapping

from apr_falsify.commands import transformers_subject
from apr_falsify.subjects.interface import Subject, Target, read_options
from apr_falsify.subjects.registry import RuntimeEntry, open_subject


def _open_torch(target: Target) -> Subject:
    from apr_falsify.commands.torch_subject import open_torch

    return open_torch(target)


def _open_onnx(target: Target) -> Subject:
    from apr_falsify.commands.onnx_subject import open_onnx

    return open_onnx(target)


OURS: Mapping[str, RuntimeEntry] = {
    transformers_subject.NAME: RuntimeEntry(
        open=transformers_subject.open_transformers,
        path="HF_DIR or MODEL.gguf",
        what="the same checkpoint under another attention, number format or batch",
        holds_model=True,
        settings=lambda: transformers_subject.SETTINGS,
    ),
    "torch": RuntimeEntry(
        open=_open_torch,
        path="FILE.py:BUILD",
        what="the torch module that BUILD() of your file returns, wired by replay",
    ),
    "onnx": RuntimeEntry(
        open=_open_onnx,
        path="MODEL.onnx",
        what="a decoder in ONNX Runtime, every value of its graph an output, wired by replay",
    ),
}
"""Name -> runtime, as in ``subjects/registry.py``."""


def open_side(runtime: str, target: Target) -> Subject:
    """Return the subject of any runtime at ``target``.

    Raises:
        UsageError: no runtime has that name, or it has not such a setting.

    """
    if runtime not in OURS:
        return open_subject(runtime, target)
    read_options(target.options, OURS[runtime].settings(), runtime)
    return OURS[runtime].open(target)
