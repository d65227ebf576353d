"""transformers as a subject: the same checkpoint under another attention, number format or batch."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass

from apr_falsify.errors import UsageError
from apr_falsify.formats.weights import Model, open_model
from apr_falsify.model.passes import Passes
from apr_falsify.model.shape import Geometry
from apr_falsify.oracle.capture import capture
from apr_falsify.subjects.interface import RuntimeSetting, Target, read_options
from apr_falsify.traces.capture import Request, Sink
from apr_falsify.traces.identity import difference, model_sha256, same_family_file, settings_of
from apr_falsify.traces.trace import Trace

NAME = "transformers"

_MOST_ROWS = 64


def _one_of(*words: str) -> RuntimeSetting:
    return RuntimeSetting(read={word: word for word in words}.__getitem__, expected=" or ".join(words))


def _rows(text: str) -> int:
    rows = int(text)
    if not 1 <= rows <= _MOST_ROWS:
        raise ValueError(text)
    return rows


SETTINGS: Mapping[str, RuntimeSetting] = {
    "attention": _one_of("eager", "sdpa"),
    "dtype": _one_of("f32", "f16", "bf16"),
    "device": _one_of("cpu", "cuda"),
    "batch": RuntimeSetting(read=_rows, expected=f"a whole number from 1 to {_MOST_ROWS}"),
}
"""What ``--subject-option`` and ``--oracle-option`` may set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformersSubject:
    """A checkpoint to be run by transformers.

    Attributes:
        model: the checkpoint.
        attention: transformers' name of its attention.
        dtype: the number format of weights and activations.
        device: where it runs.
        batch: how many rows run together; the first is the one that is compared.

    """

    model: Model
    attention: str = "eager"
    dtype: str = "f32"
    device: str = "cpu"
    batch: int = 1
    tokens: tuple[int, ...] | None = None
    prompt: str | None = None
    layers: tuple[int, ...] | None = None
    passes: Passes | None = None

    @property
    def geometry(self) -> Geometry:
        """The geometry of its model."""
        return self.model.geometry

    def capture(self, request: Request, sink: Sink) -> Trace:
        """Run the model on ``request``.

        Raises:
            UsageError: transformers does not have this attention for the model's family.

        """
        if self.batch > 1 and any(self.geometry.mixtures):
            raise UsageError(
                "the router of a mixture sees all rows of a batch as one sequence, and shows no row alone",
                where=f"batch={self.batch}",
                expected="batch=1",
            )
        how = {"dtype": self.dtype, "device": self.device, "attention": self.attention}
        try:
            return capture(self.model, request, sink, batch=self.batch, **how)
        except ValueError as error:
            if self.attention == "eager":
                raise
            raise UsageError(
                f"transformers does not run {self.geometry.family} with this attention: {error}",
                where=f"attention={self.attention}",
                expected="attention=eager",
            ) from error

    def differs(self, trace: Trace, request: Request) -> str | None:
        """Say how ``trace`` is not what :meth:`capture` would give."""
        wanted = {
            "runtime": "hf",
            "version": importlib.metadata.version("transformers"),
            "model_sha256": model_sha256(self.model.files),
            "dtype": self.dtype,
            "device": self.device,
            "settings": settings_of(self.attention, self.batch),
            **same_family_file(self.geometry),
        }
        return difference(trace, request, self.geometry, wanted)


def open_transformers(target: Target) -> TransformersSubject:
    """Return the checkpoint at ``target`` as a subject."""
    chosen = read_options(target.options, SETTINGS, NAME)
    return TransformersSubject(model=open_model(target.path), **chosen)
