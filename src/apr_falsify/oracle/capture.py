"""The oracle's entrances: capture a run in transformers, load a model for several, run one plainly.

Importing this module imports neither torch nor transformers; the first call does, and raises
:class:`MissingDependencyError` with the command that installs them where they are not there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from apr_falsify.formats.weights import Model
from apr_falsify.traces.capture import Request, Sink
from apr_falsify.traces.identity import start_hashing
from apr_falsify.traces.trace import Trace

if TYPE_CHECKING:
    from apr_falsify.oracle.run import Oracle


def load(
    model: Model, *, layers: int | None = None, head: bool = True, dtype: str = "f32", device: str = "cpu"
) -> Oracle:
    """Load the first ``layers`` layers of ``model`` (default: all) as a HuggingFace model.

    Args:
        model: an opened model, safetensors or GGUF.
        layers: how many layers to load; no other layer's weights are read.
        head: whether to load the output head too; it needs all layers.
        dtype: ``f32``, ``f16``, ``bf16`` or ``f64``; a checkpoint that is stored so is not copied.
        device: ``cpu`` or ``cuda``.

    Raises:
        MissingDependencyError: torch or transformers is not installed.
        DeviceError: the device is not there.
        UsageError: an unknown number format.
        LayerRangeError: layers the model does not have.
        ModelError: a weight is missing or of another shape than the geometry's.

    """
    from apr_falsify.oracle.run import Oracle

    return Oracle.load(model, layers=layers, head=head, dtype=dtype, device=device)


def capture(
    model: Model,
    request: Request,
    sink: Sink,
    *,
    dtype: str = "f32",
    device: str = "cpu",
    attention: str = "eager",
    batch: int = 1,
) -> Trace:
    """Run ``model`` through transformers and hand the requested stages to ``sink``.

    Stages arrive as each is computed, in canonical shapes (``stages.py``), f32 (f64 for ``f64``; f16 and
    bf16 widen exactly). Only the layers up to the last requested one are loaded and run, and the output
    head only where ``lm_head`` is stored. Tokens and logits are those of :func:`forward`, bit for bit, unless
    another ``attention`` than transformers' eager one, or a ``batch`` of several rows, is asked for.

    Raises:
        MissingDependencyError: torch or transformers is not installed.
        DeviceError: the device is not there.
        TokensError: no token, or one outside the vocabulary.
        LayerRangeError: layers the model does not have.
        StageError: no stage would be stored.
        ModelError: a weight is missing.

    """
    from apr_falsify.oracle.run import Oracle

    start_hashing(model.files)  # its provenance will ask for the digest when the run is over
    oracle = Oracle.for_request(model, request, dtype=dtype, device=device, attention=attention, batch=batch)
    return oracle.capture(request, sink)


def forward(
    model: Model, tokens: tuple[int, ...], *, dtype: str = "f32", device: str = "cpu"
) -> npt.NDArray[np.floating[Any]]:
    """Return the logits [S, V] of the plain eager forward: the same loader, and no capture.

    Raises:
        MissingDependencyError: torch or transformers is not installed.
        DeviceError: the device is not there.
        ModelError: a weight is missing.

    """
    return load(model, dtype=dtype, device=device).logits(tokens)
