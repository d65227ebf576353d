"""A torch module of anybody's, watched while it runs: what its modules are given and give, and attention.

Nothing is computed otherwise: hooks return nothing, and a watched function is called as it would have been. A
value that several modules are given is shown once, under the name of the one that made it.
"""

from __future__ import annotations

import hashlib
import inspect
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import pairwise
from typing import Any

import torch

from apr_falsify.errors import TokensError, UsageError
from apr_falsify.formats.safetensors_writer import PlainArray

TorchTensor = torch.Tensor
Show = Callable[[str, torch.Tensor], None]
"""Takes a value under its name; it may change as soon as the call is over."""

TYPES: Mapping[torch.dtype, str] = {
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.uint8: "U8",
}
"""torch's number formats that are kept, and their names in safetensors."""


def is_tensor(value: object) -> bool:
    """Whether a value is a tensor of torch."""
    return isinstance(value, torch.Tensor)


def is_module(value: object) -> bool:
    """Whether a value is a module of torch."""
    return isinstance(value, torch.nn.Module)


def plain_of_tensor(values: torch.Tensor) -> PlainArray | None:
    """Return a tensor as its bytes, ``None`` where it has no plain ones: sparse, quantised, without data."""
    if not is_plain(values):
        return None
    host = values.detach().cpu().contiguous()
    return PlainArray(
        dtype=TYPES[host.dtype], shape=tuple(host.shape), data=host.reshape(-1).view(torch.uint8).numpy()
    )


def is_plain(values: torch.Tensor) -> bool:
    """Whether a tensor has plain values: neither sparse, nested, quantised nor without data."""
    return (
        values.layout is torch.strided
        and values.dtype in TYPES
        and values.device.type != "meta"
        and not values.is_nested
        and type(values).__torch_dispatch__ is torch.Tensor.__torch_dispatch__  # no wrapper
    )


def version_of(values: torch.Tensor) -> int | None:
    """Return how often a tensor was changed in place, ``None`` where torch does not count (inference)."""
    return None if values.is_inference() else values._version


_Shown = Iterator[tuple[str, Any]]


def _of_sdpa(args: Sequence[Any], kwargs: Mapping[str, Any]) -> _Shown:
    given = {**dict(zip(("query", "key", "value"), args, strict=False)), **kwargs}
    yield from ((name, given.get(long)) for name, long in (("q", "query"), ("k", "key"), ("v", "value")))


def _of_softmax(args: Sequence[Any], kwargs: Mapping[str, Any]) -> _Shown:
    yield "input", args[0] if args else kwargs.get("input")


def _of_product(args: Sequence[Any], kwargs: Mapping[str, Any]) -> _Shown:
    yield from zip(("left", "right"), args, strict=False)


_FUNCTIONAL = torch.nn.functional
_DROPOUTS = ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout")
_Pick = Callable[[Sequence[Any], Mapping[str, Any]], _Shown]
_WATCHED: Mapping[tuple[Any, str], tuple[str, _Pick]] = {
    (_FUNCTIONAL, "scaled_dot_product_attention"): ("sdpa", _of_sdpa),
    **{(owner, "softmax"): ("softmax", _of_softmax) for owner in (_FUNCTIONAL, torch, torch.Tensor)},
    **{
        (owner, name): ("matmul", _of_product)
        for owner in (torch, torch.Tensor)
        for name in ("matmul", "bmm")
    },
    (torch.Tensor, "__matmul__"): ("matmul", _of_product),
    (_FUNCTIONAL, "embedding"): ("", _of_softmax),
    **{(_FUNCTIONAL, name): ("dropout", _of_softmax) for name in _DROPOUTS},
}
"""Where a function stands -> its name in a recording, and what of its arguments is shown."""


def _is_of_weights(args: Sequence[Any]) -> bool:
    """Whether a product is one with weights, which a module shows already."""
    return any(isinstance(arg, torch.nn.Parameter) or getattr(arg, "ndim", 0) < 3 for arg in args[:2])


_ONE_WATCH = threading.Lock()
"""Held while a module is watched: torch's functions are replaced for the whole process."""


def _drops(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a call of dropout sets values to zero by chance."""
    given = inspect.signature(function).bind(*args, **kwargs)
    given.apply_defaults()
    return bool(given.arguments["training"]) and given.arguments["p"] > 0


@contextmanager
def watched(module: torch.nn.Module, show: Show, tokens: tuple[int, ...]) -> Iterator[Watch]:
    """Show what ``module`` computes while the block runs it once.

    Args:
        module: any module of torch; its whole run is one pass over ``tokens``.
        show: takes each value; what it raises ends the run of the module.
        tokens: the ids that it shall run.

    Raises:
        UsageError: it holds compiled or scripted code, into which hooks do not see; or another one is
            watched.

    """
    _check_plain(module)
    watch = Watch(show, tokens)
    with ExitStack() as undo:
        _only_one(undo)
        for path, part in module.named_modules():
            undo.callback(part.register_forward_pre_hook(partial(watch.enter, path), with_kwargs=True).remove)
            undo.callback(part.register_forward_hook(partial(watch.leave, path), always_call=True).remove)
        _watch_functions(undo, watch)
        yield watch
    watch.check_tokens()


def _only_one(undo: ExitStack) -> None:
    if not _ONE_WATCH.acquire(blocking=False):
        raise UsageError(
            "another recording of a module is open in this process",
            where="record(model=...)",
            expected="one block at a time",
            remedy="leave the block of the other recording first, or record in two processes",
        )
    undo.callback(_ONE_WATCH.release)


def _check_plain(module: torch.nn.Module) -> None:
    for path, part in module.named_modules():
        scripted = isinstance(part, torch.jit.ScriptModule)
        compiled = type(part).__name__ == "OptimizedModule" or getattr(part, "_compiled_call_impl", None)
        if scripted or compiled:
            raise UsageError(
                f"it is {'scripted' if scripted else 'compiled'}: hooks do not see into such code",
                where=f"model, {path}" if path else "model",
                expected="a module that runs as it is written",
                remedy="run and record the module that was compiled; to record the compiled code itself, let "
                "it return its values and hand them to rec(name, array)",
            )


class Watch:
    """Names what one run of a module shows.

    Attributes:
        dropout: whether dropout was active in it, so that another run gives other values.

    """

    def __init__(self, show: Show, tokens: tuple[int, ...]) -> None:
        self._show, self._tokens = show, tokens
        self.dropout = False
        self._open: list[tuple[str, str]] = []  # path of a module, name of this call of it
        self._calls: dict[str, int] = {}
        self._seen: dict[int, tuple[weakref.ref[torch.Tensor], Any]] = {}
        self._embedded: list[tuple[Any, list[int]]] = []
        self._within, self._thread = False, threading.get_ident()

    def enter(self, path: str, module: torch.nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
        """Open a module's call, and show what it is given if it has no modules of its own."""
        if torch.compiler.is_compiling():
            raise UsageError(
                "it is run by compiled code, into which hooks do not see",
                where="model",
                expected="a plain call of the module",
                remedy="call the module that was compiled, not what torch.compile made of it",
            )
        if not self._sees():
            return
        if not path:
            self._begin()  # what an exception left open is closed
        name = self._counted(path) if path else path
        self._open.append((path, name))
        if path and not any(True for _ in module.children()):
            self.shown(f"{name}.input", (*args, kwargs))

    def leave(self, path: str, module: torch.nn.Module, args: Any, output: Any) -> None:
        """Close a module's call, also after an exception, where there is no output."""
        if not self._sees() or all(path != opened for opened, _ in self._open):
            return
        opened = None
        while opened != path:
            opened, name = self._open.pop()
        if output is not None:
            self.shown(name or "output", output)

    def _sees(self) -> bool:
        """Whether this is the thread of the block, and no code that is just being compiled."""
        return not torch.compiler.is_compiling() and threading.get_ident() == self._thread

    def _begin(self) -> None:
        if "" in self._calls:
            raise UsageError(
                "the module ran a second time within one recording",
                where="model",
                expected="one pass over all tokens",
                remedy="call it once within the block, on all tokens and without a cache; for a run in "
                "passes see docs/phases.md and rec(name, array)",
            )
        self._open.clear()
        self._calls[""] = 1

    def _counted(self, name: str) -> str:
        """Return a name, from its second use on with the number of the use."""
        number = self._calls[name] = self._calls.get(name, 0) + 1
        return name if number == 1 else f"{name}#{number}"

    def shown(self, name: str, value: Any) -> None:
        """Show the tensors in a value that were not shown yet."""
        if isinstance(value, torch.Tensor):
            if not isinstance(value, torch.nn.Parameter) and value.dtype in TYPES and self._is_new(value):
                self._show(name, value)
            return
        parts: Iterator[tuple[object, Any]] = iter(())
        if isinstance(value, Mapping):
            parts = iter(value.items())
        elif isinstance(value, (tuple, list)):
            parts = iter(enumerate(value))
        for at, part in parts:
            self.shown(name if at == 0 else f"{name}.{at}", part)

    def _is_new(self, values: torch.Tensor) -> bool:
        """Whether a tensor was not shown yet, or was changed in place since."""
        now = _state_of(values)
        known = self._seen.get(id(values))
        if now is not None and known is not None and known[0]() is values and known[1] == now:
            return False
        self._seen[id(values)] = (weakref.ref(values), now)
        return True

    def call(self, word: str, pick: _Pick, function: Any, args: Any, kwargs: Any) -> Any:
        """Call a function of torch, and show what it is given and gives."""
        here = self._sees() and self._open and not self._within
        if not here or (word == "matmul" and _is_of_weights(args)):
            return function(*args, **kwargs)
        if word == "dropout":
            self.dropout = self.dropout or _drops(function, args, kwargs)
            return function(*args, **kwargs)
        if not word:
            self._note_ids(*args[:2], **{key: kwargs[key] for key in ("input", "weight") if key in kwargs})
            return function(*args, **kwargs)
        name = self._counted(f"{self._open[-1][1]}.{word}".lstrip("."))
        for part, value in pick(args, kwargs):
            self.shown(f"{name}.{part}", value)
        self._within = True  # softmax of torch.nn.functional calls that of the tensor
        try:
            output = function(*args, **kwargs)
        finally:
            self._within = False
        self.shown(name, output)
        return output

    def _note_ids(self, input: Any = None, weight: Any = None) -> None:
        if isinstance(input, torch.Tensor) and input.ndim and input.numel():
            table = id(weight) if isinstance(weight, torch.nn.Parameter) else getattr(weight, "shape", None)
            rows = input.reshape(-1, input.shape[-1]).tolist()
            self._embedded += [(table, row) for row in rows]

    def check_tokens(self) -> None:
        """Refuse a run of other tokens than those that are said; what embeds none cannot be checked.

        Raises:
            TokensError: none of the rows that were embedded are those tokens, or the table that holds them
                embedded others too.

        """
        strange = self._strange()
        if strange:
            raise TokensError(
                f"the module ran {_told(strange)}",
                where="tokens",
                expected=f"a run of {list(self._tokens)!r:.120}, as `tokens` says",
                remedy="run it on these tokens at once, one sequence alone, or say which it runs",
            )

    def _strange(self) -> list[list[int]]:
        """Return the rows that were embedded and are neither the tokens nor of another table."""
        tokens = list(self._tokens)
        tables = {table for table, row in self._embedded if row == tokens}
        if not tables:
            return [row for _, row in self._embedded]
        if _are_positions(tokens):  # the table that embedded them may be that of the positions
            tables |= {
                table for table, row in self._embedded if len(row) == len(tokens) and not _are_positions(row)
            }
        return [row for table, row in self._embedded if table in tables and row != tokens]


def _are_positions(row: Sequence[int]) -> bool:
    """Whether a row counts up by one, or is one number again and again, as types of tokens are."""
    steps = {after - before for before, after in pairwise(row)}
    return steps in ({1}, {0}, set())


def _told(rows: Sequence[Sequence[int]]) -> str:
    """Return the first rows of ids, short."""
    return "; ".join(f"{list(row)!r:.120}" for row in rows[:3])


def _state_of(values: torch.Tensor) -> Any:
    """Return what changes with a tensor's values, ``None`` where nothing does.

    That is torch's count of changes, or a digest of all bytes where torch does not count (inference mode).
    """
    if not values.is_inference():
        return values._version
    plain = plain_of_tensor(values)
    return None if plain is None else hashlib.blake2b(plain.data.data, digest_size=16).digest()


def _watch_functions(undo: ExitStack, watch: Watch) -> None:
    """Put functions in the place of torch's that call those, until ``undo``.

    torch's own way, a ``TorchFunctionMode``, is asked at each of the thousands of calls of a forward pass.
    """
    for (owner, name), (word, pick) in _WATCHED.items():
        function = getattr(owner, name)

        def called(
            *args: Any, word: str = word, pick: _Pick = pick, function: Any = function, **kwargs: Any
        ) -> Any:
            return watch.call(word, pick, function, args, kwargs)

        own = name in vars(owner)
        setattr(owner, name, called)
        undo.callback(setattr, owner, name, function) if own else undo.callback(delattr, owner, name)


def on_a_row(module: Any) -> Callable[[list[int]], Any]:
    """Return what runs a module on ids as a batch of one row, as the usual decoders take them.

    Raises:
        UsageError: it is no module of torch.

    """
    if not is_module(module):
        raise UsageError(
            f"a {type(module).__name__} is no module of torch",
            expected="a torch.nn.Module, or that and a function that runs it on a list of ids",
        )

    def run(tokens: list[int]) -> Any:
        with torch.no_grad():
            return module(torch.tensor([tokens]))

    return run
