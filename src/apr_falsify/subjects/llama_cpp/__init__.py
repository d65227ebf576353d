"""llama.cpp: a GGUF file run by llama-cpp-python, or a raw capture of its graph; one reader for both."""

from __future__ import annotations

from apr_falsify.errors import UsageError
from apr_falsify.subjects.interface import Subject, Target
from apr_falsify.subjects.llama_cpp.live import open_live
from apr_falsify.subjects.llama_cpp.recording import open_recording

_GGUF = b"GGUF"


def open_llama_cpp(target: Target) -> Subject:
    """Open the GGUF file, or the raw capture, at ``target``.

    Raises:
        UsageError: settings for a run that is over.
        AprFalsifyError: it cannot be read.

    """
    if is_gguf(target):
        return open_live(target)
    if target.options:
        raise UsageError(
            "a capture was made already: settings change nothing",
            where="--subject-option",
            remedy="leave --subject-option out, or name a .gguf",
        )
    return open_recording(target)


def is_gguf(target: Target) -> bool:
    """Whether ``target`` is meant as a model: named so, or one by its first bytes."""
    if target.path.suffix == ".gguf":
        return True
    try:
        with target.path.open("rb") as file:
            return file.read(len(_GGUF)) == _GGUF
    except OSError:
        return False
