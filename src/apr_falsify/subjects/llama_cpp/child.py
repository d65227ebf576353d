"""Runs llama.cpp in a process of its own, which native code may abort: started by ``live.py``, as a script.

``python child.py VERB REQUEST.json``; what it finds goes into the file that the request calls ``result``. It
imports nothing of this package. The nodes of the graph are written one by one, as they are computed.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    sys.path.pop(0)  # this folder, whose files are no modules for others to find

import ctypes
import functools
import importlib
import importlib.metadata
import json
import os
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

DEBUG, CONTINUED = 1, 5
"""``GGML_LOG_LEVEL_DEBUG`` and ``GGML_LOG_LEVEL_CONT`` of ggml.h."""

F32 = 0
"""``GGML_TYPE_F32`` of ggml.h."""

_ANONYMOUS = re.compile(r"node_\d+|leaf_\d+|")
_OUTPUT_WEIGHT = re.compile(r"blk\.(\d+)\.attn_output\.weight")
_MIXED = re.compile(r"kqv_out-(\d+)")
_MOVED = ("RESHAPE", "VIEW", "PERMUTE", "CONT")


class FailedError(Exception):
    """llama.cpp refused; says what."""


class GgmlTensor(ctypes.Structure):
    """``struct ggml_tensor`` of ggml.h; :meth:`Library.tensor` checks that it is that of the library."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * 64),
    )


class Library:
    """llama.cpp and ggml, as llama-cpp-python carries them."""

    def __init__(self) -> None:
        self.llama: Any = importlib.import_module("llama_cpp.llama_cpp")
        self.ggml: Any = importlib.import_module("llama_cpp._ggml").libggml
        self.name = self._bound("ggml_get_name", ctypes.c_char_p, ctypes.c_void_p)
        self.operation = self._bound("ggml_op_desc", ctypes.c_char_p, ctypes.c_void_p)
        self.bytes = self._bound("ggml_nbytes", ctypes.c_size_t, ctypes.c_void_p)
        self.contiguous = self._bound("ggml_is_contiguous", ctypes.c_bool, ctypes.c_void_p)
        pointers = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t)
        self.read = self._bound("ggml_backend_tensor_get", None, *pointers)
        self._log = self.llama.llama_log_callback(Logger())
        self.llama.llama_log_set(self._log, ctypes.c_void_p(0))
        self.llama.llama_backend_init()

    def _bound(self, name: str, result: Any, *arguments: Any) -> Callable[..., Any]:
        function: Any = getattr(self.ggml, name)
        function.restype, function.argtypes = result, arguments
        return functools.partial(function)

    def tensor(self, address: int) -> GgmlTensor:
        """Return the tensor at ``address``.

        Raises:
            FailedError: this build's structure is another one.

        """
        tensor = GgmlTensor.from_address(address)
        if tensor.name != self.name(address):
            raise FailedError("struct ggml_tensor of this build is laid out in an unknown way")
        return tensor

    def lacks(self, fields: Mapping[str, list[str]]) -> list[str]:
        """Return those of ``fields`` (owner -> parameters) that this version does not have."""
        params = {
            "model": self.llama.llama_model_default_params(),
            "context": self.llama.llama_context_default_params(),
        }
        return [name for owner, names in fields.items() for name in names if not hasattr(params[owner], name)]

    def describe(self) -> dict[str, Any]:
        """Return versions, and the file that computes."""
        version = getattr(self.ggml, "ggml_version", None)
        commit = getattr(self.ggml, "ggml_commit", None)
        for function in (version, commit):
            if function is not None:
                function.restype = ctypes.c_char_p
        return {
            "package": importlib.metadata.version("llama-cpp-python"),
            "ggml": "" if version is None else version().decode(),
            "commit": "" if commit is None else commit().decode(),
            "system": self.llama.llama_print_system_info().decode().strip(" |"),
            "offload": bool(self.llama.llama_supports_gpu_offload()),
            "files": sorted(str(path) for path in _loaded_libraries()),
        }


class Logger:
    """Passes on what llama.cpp says, but for what only its authors read."""

    def __init__(self) -> None:
        self._level = 0

    def __call__(self, level: int, text: bytes, _: Any) -> None:
        """Print one message."""
        self._level = self._level if level == CONTINUED else level
        if self._level != DEBUG:
            sys.stderr.write(text.decode("utf-8", "replace"))
            sys.stderr.flush()


def _loaded_libraries() -> set[Path]:
    """Return the files of llama.cpp and ggml that this process has mapped."""
    maps = Path("/proc/self/maps")
    lines = maps.read_text().splitlines() if maps.exists() else []
    files = {Path(line.split(maxsplit=5)[5]) for line in lines if line.count("/")}
    return {file for file in files if re.match(r"lib(llama|ggml)", file.name)}


class NodeRecorder:
    """Copies nodes of the graph into an ``.npz``, each as soon as it is computed."""

    def __init__(self, library: Library, archive: zipfile.ZipFile, wanted: set[str]) -> None:
        self._library, self._archive, self._wanted = library, archive, wanted
        self._seen: Counter[str] = Counter()
        self._rotated: dict[str, list[int]] = {}
        self.error: Exception | None = None

    def __call__(self, address: int, asking: bool, _: Any) -> bool:
        """Say whether a node is wanted, and copy it; ctypes drops what is raised here: it is stored."""
        try:
            name = self._name(address)
            if asking:
                return name in self._wanted
            self._copy(name, address)
        except Exception as error:  # whatever it is: C code cannot carry it, the caller raises it
            self.error = error
        return self.error is None

    def _name(self, address: int) -> str:
        """Return a node's name; what some models leave nameless behind the attention gets its usual one."""
        name = str(self._library.name(address).decode("utf-8", "replace"))
        if not _ANONYMOUS.fullmatch(name) or self._library.operation(address) != b"MUL_MAT":
            return name
        weight, operand, *_ = self._library.tensor(address).src
        if found := _OUTPUT_WEIGHT.fullmatch(self._library.name(weight).decode("utf-8", "replace")):
            return f"attn_out-{found[1]}"
        mixed = _MIXED.fullmatch(self._origin(operand))
        return f"kqv_unrotated-{mixed[1]}" if mixed else name

    def _origin(self, address: int) -> str:
        """Return the name of what ``address`` is a view of."""
        while self._library.operation(address).decode() in _MOVED:
            name = str(self._library.name(address).decode("utf-8", "replace"))
            if _MIXED.fullmatch(name):
                return name
            address = self._library.tensor(address).src[0]
        return str(self._library.name(address).decode("utf-8", "replace"))

    def _copy(self, name: str, address: int) -> None:
        tensor = self._library.tensor(address)
        values = np.empty(tuple(tensor.ne)[::-1], np.float32)
        if tensor.type != F32 or not self._library.contiguous(address):
            raise FailedError(f"the node {name} is not f32, or not in one piece")
        if self._library.bytes(address) != values.nbytes:
            raise FailedError("struct ggml_tensor of this build is laid out in an unknown way")
        if values.nbytes:
            self._library.read(address, values.ctypes.data, 0, values.nbytes)
        self._seen[name] += 1
        if self._library.operation(address) == b"ROPE":
            self._rotated.setdefault(name, []).append(self._seen[name])
        self.write(name if self._seen[name] == 1 else f"{name}#{self._seen[name]}", values)

    def write_which_are_rotated(self) -> None:
        """Write, for each name, which of its occurrences RoPE made, counted from 1."""
        for name, which in self._rotated.items():
            self.write(f"{name}@rotated", np.asarray(which, np.int64))

    def write(self, name: str, values: Any) -> None:
        """Write one array."""
        with self._archive.open(f"{name}.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array(file, np.asanyarray(values))


def _set(params: Any, values: Mapping[str, Any]) -> Any:
    for name, value in values.items():
        if not hasattr(params, name):
            raise FailedError(f"this llama-cpp-python has no parameter {name}")
        setattr(params, name, value)
    return params


def _model(library: Library, request: Mapping[str, Any], **params: Any) -> Any:
    llama = library.llama
    chosen = _set(llama.llama_model_default_params(), {**params, **request.get("model_params", {})})
    model = llama.llama_model_load_from_file(os.fsencode(request["model"]), chosen)
    if not model:
        raise FailedError("llama.cpp could not load the model")
    return model


def encode(library: Library, request: Mapping[str, Any]) -> dict[str, Any]:
    """Return the token ids of the request's text, with the special tokens that the model asks for."""
    llama = library.llama
    vocab = llama.llama_model_get_vocab(_model(library, request, vocab_only=True))
    text = request["text"].encode()
    room = len(text) + 16
    ids = (llama.llama_token * room)()
    count = llama.llama_tokenize(vocab, text, len(text), ids, room, True, True)
    if count < 0:
        raise FailedError("llama.cpp could not tokenise the prompt")
    return {"ids": list(ids[:count])}


def capture(library: Library, request: Mapping[str, Any]) -> dict[str, Any]:
    """Run the request's tokens and write the wanted nodes into the ``.npz`` that it names."""
    llama = library.llama
    model = _model(library, request)
    kind = zipfile.ZIP_DEFLATED if request["compressed"] else zipfile.ZIP_STORED
    with zipfile.ZipFile(request["out"], "w", kind) as archive:
        recorder = NodeRecorder(library, archive, set(request["nodes"]))
        recorder.write("token_ids", np.asarray(request["tokens"], np.int64))
        params = _set(llama.llama_context_default_params(), request["context_params"])
        # Named, so that it lives as long as the context that calls it.
        callback = llama.ggml_backend_sched_eval_callback(recorder)
        params.cb_eval = callback
        context = llama.llama_init_from_model(model, params)
        if not context:
            raise FailedError("llama.cpp refused these settings")
        tokens = request["tokens"]
        positions = request.get("positions") or [*range(len(tokens))]
        parts = _parts(request.get("passes") or [len(tokens)], int(llama.llama_n_batch(context)))
        _decode(llama, context, list(zip(tokens, positions, strict=True)), parts, recorder)
        recorder.write_which_are_rotated()
        llama.llama_free(context)
    return {}


def _parts(sizes: list[int], most: int) -> list[int]:
    """Return how many tokens are run at once: a pass each, in several where the context holds fewer."""
    return [min(most, size - start) for size in sizes for start in range(0, size, most)]


def _decode(
    llama: Any, context: Any, tokens: list[tuple[int, int]], parts: list[int], recorder: NodeRecorder
) -> None:
    """Run the tokens, each with its position, part by part; only the last one's logits are requested."""
    batch = llama.llama_batch_init(max(parts), 0, 1)
    start = 0
    for size in parts:
        part = tokens[start : start + size]
        batch.n_tokens = len(part)
        for index, (token, position) in enumerate(part):
            batch.token[index], batch.pos[index] = token, position
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, 0
            batch.logits[index] = start + index == len(tokens) - 1
        start += size
        code = llama.llama_decode(context, batch)
        if recorder.error is not None:
            raise recorder.error
        if code:
            raise FailedError(f"llama_decode returned {code}")
    llama.llama_batch_free(batch)


VERBS: Mapping[str, Callable[[Library, Mapping[str, Any]], dict[str, Any]]] = {
    "describe": lambda library, request: {"lacks": library.lacks(request.get("fields", {}))},
    "encode": encode,
    "capture": capture,
}


def main(verb: str, place: str) -> int:
    """Do what the request at ``place`` asks for; return the exit status."""
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")  # else a debugger's words would follow its last own
    request = json.loads(Path(place).read_text(encoding="utf-8"))
    try:
        library = Library()
        found = {"description": library.describe(), **VERBS[verb](library, request)}
    except (FailedError, ImportError, AttributeError, OSError) as error:
        found = {"error": str(error) or type(error).__name__}
    Path(request["result"]).write_text(json.dumps(found), encoding="utf-8")
    return int("error" in found)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
