"""One loaded oracle: the plain eager forward, and the same with its stages captured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from apr_falsify.errors import LayerRangeError, ModelError
from apr_falsify.formats.weights import Model
from apr_falsify.model.passes import Passes
from apr_falsify.model.stages import SCORES, SQUARES, Key, Layout
from apr_falsify.oracle.libraries import device_named, dtype_named, torch, transformers
from apr_falsify.oracle.loading import load_module
from apr_falsify.oracle.parts import Parts
from apr_falsify.oracle.probe import probed
from apr_falsify.oracle.tokenizer import decode
from apr_falsify.traces.capture import Request, Sink, laid_end_to_end, source_commit
from apr_falsify.traces.identity import driver_of, model_sha256, name_of, settings_of
from apr_falsify.traces.provenance import Provenance, utc_now
from apr_falsify.traces.trace import Trace

FloatArray = npt.NDArray[np.floating[Any]]

FROM_CACHE = ("k_post_rope", "k_l2_norm", "k_rope", "kv_up", "conv_in", "conv_out")
"""Stages that a later pass shows of all tokens so far, as a cache hands them out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Oracle:
    """A model in transformers, ready to run.

    Attributes:
        model: the model on disk.
        module: the same in transformers: its first layers, with or without the output head.
        dtype: number format of weights and activations.
        device: where it runs.
        attention: transformers' name of its attention; none but ``eager`` shows scores and weights.
        batch: how many rows run together, of which the first is captured; the others have other tokens.

    """

    model: Model
    module: torch.nn.Module
    dtype: str
    device: str
    attention: str = "eager"
    batch: int = 1

    @classmethod
    def load(
        cls,
        model: Model,
        *,
        layers: int | None,
        head: bool,
        dtype: str,
        device: str,
        attention: str = "eager",
        batch: int = 1,
    ) -> Self:
        """Load ``model``; see :func:`apr_falsify.oracle.load`."""
        count = model.geometry.layers if layers is None else layers
        model.geometry.check_layers(range(count))
        if not count or (head and count < model.geometry.layers):
            raise LayerRangeError(
                f"{count} layers cannot be loaded {'with' if head else 'without'} the output head",
                expected=f"1 to {model.geometry.layers}, all of them with the output head",
            )
        module = load_module(
            model,
            layers=count,
            head=head,
            dtype=dtype_named(dtype),
            device=device_named(device),
            attention=attention,
        )
        return cls(model=model, module=module, dtype=dtype, device=device, attention=attention, batch=batch)

    @classmethod
    def for_request(
        cls,
        model: Model,
        request: Request,
        *,
        dtype: str,
        device: str,
        attention: str = "eager",
        batch: int = 1,
    ) -> Self:
        """Load what ``request`` needs and no more, after it was checked."""
        request.check(model.geometry)
        head = not {(None, "lm_head_proj"), (None, "lm_head")}.isdisjoint(request.keys(model.geometry))
        return cls.load(
            model,
            layers=request.layers.stop,
            head=head,
            dtype=dtype,
            device=device,
            attention=attention,
            batch=batch,
        )

    def _ids(self, tokens: tuple[int, ...]) -> torch.Tensor:
        """Return the token ids of all rows, [batch, S]: the others have this one's, turned round."""
        rows = [tokens[at % len(tokens) :] + tokens[: at % len(tokens)] for at in range(self.batch)]
        return torch.tensor(rows, device=self.device)

    def run(self, tokens: tuple[int, ...]) -> Any:
        """Run the module on ``tokens`` at once and return what transformers returns."""
        ids = self._ids(tokens)
        with torch.inference_mode():
            return self.module(input_ids=ids, use_cache=False)

    def run_passes(self, tokens: tuple[int, ...], passes: Passes) -> None:
        """Run the module on ``tokens`` pass by pass, with transformers' own cache of keys and values."""
        cache = transformers.DynamicCache(config=self.module.config)
        ids = self._ids(tokens)
        at = torch.tensor([passes.at.tolist()] * self.batch, device=self.device, dtype=torch.long)
        seen = (torch.arange(len(tokens), device=self.device) >= passes.padding).long().repeat(self.batch, 1)
        for start, size in zip(passes.starts, passes.sizes, strict=True):
            end = start + size
            with torch.inference_mode():
                self.module(
                    input_ids=ids[:, start:end],
                    position_ids=at[:, start:end],
                    attention_mask=seen[:, :end],
                    past_key_values=cache,
                    use_cache=True,
                )

    def logits(self, tokens: tuple[int, ...]) -> FloatArray:
        """Return the logits [S, V] of the plain forward."""
        return to_numpy(self.run(tokens).logits[0])

    def capture(self, request: Request, sink: Sink) -> Trace:
        """Run ``request`` and hand its stages to ``sink``, each as it is computed.

        Raises:
            TokensError, LayerRangeError, StageError: the request does not fit the model.

        """
        geometry = self.model.geometry
        request.check(geometry)
        logits: list[FloatArray] = []
        parts = Parts()

        def emit(key: Key, values: torch.Tensor) -> None:
            array = to_numpy(values)
            if key == (None, "lm_head"):
                logits.append(array)
            if request.passes.plain:
                sink.add(key, array)
            else:
                own = request.passes.sizes[parts.count(key)] if key.stage in FROM_CACHE else len(array)
                parts.add(key, array[-own:])

        wanted = [
            key for key in request.keys(geometry) if self.attention == "eager" or key.stage not in SQUARES
        ]
        with parts:
            with probed(self.module, wanted, emit, geometry, self.attention):
                if request.passes.plain:
                    self.run(request.tokens)
                else:
                    self.run_passes(request.tokens, request.passes)
            for key in parts.shown:
                sink.add(key, *joined_passes(key, parts.of(key), request.passes))
        return sink.finish(
            provenance=self._provenance(request, logits[-1] if logits else None),
            geometry=geometry,
            tokens=request.tokens,
            in_passes=request.in_passes,
        )

    def _provenance(self, request: Request, logits: FloatArray | None) -> Provenance:
        return Provenance(
            runtime="hf",
            version=transformers.__version__,
            driver=driver_of(self.model.geometry),
            model=name_of(self.model.path, self.model.files),
            model_sha256=model_sha256(self.model.files),
            prompt=request.prompt,
            argmax=None if logits is None else _argmax(self.model, int(np.argmax(logits))),
            dtype=self.dtype,
            device=self.device,
            arithmetic=self.dtype,
            settings=settings_of(self.attention, self.batch),
            libraries={
                "torch": str(torch.__version__),
                "transformers": transformers.__version__,
                "numpy": np.__version__,
            },
            layers=(request.layers.start, request.layers.stop),
            stages=request.stages,
            created=utc_now(),
            commit=source_commit(),
        )


def joined_passes(key: Key, parts: list[FloatArray], passes: Passes) -> tuple[FloatArray, tuple[Layout, ...]]:
    """Return a stage of all passes from what each showed, and how it then lies there.

    A pass shows every key that the cache holds, of which the last are its own. A layer with a window forgets
    what no token may see any more: there its scores are data only where a query may look.
    """
    ends = [start + size for start, size in zip(passes.starts, passes.sizes, strict=True)]
    forgotten = False
    if key.stage in SQUARES:
        forgotten = any(part.shape[-1] < end for part, end in zip(parts, ends, strict=True))
        parts = [
            np.pad(part, ((0, 0), (0, 0), (end - part.shape[-1], 0)))
            for part, end in zip(parts, ends, strict=True)
        ]
    words = (Layout.VISIBLE_ONLY,) if forgotten and key.stage in SCORES else ()
    return laid_end_to_end(key, parts), words


def _argmax(model: Model, token: int) -> dict[str, Any]:
    try:
        return {"id": token, "text": decode(model, (token,))}
    except ModelError:  # a model without a tokenizer still has a most likely token
        return {"id": token, "text": None}


def to_numpy(values: torch.Tensor) -> FloatArray:
    """Return ``values`` on the CPU as f32 or f64; f16, bf16 and indices are widened exactly."""
    host = values.detach().cpu()
    exact = host.dtype in (torch.float32, torch.float64)
    array: FloatArray = (host if exact else host.float()).numpy()
    return array
