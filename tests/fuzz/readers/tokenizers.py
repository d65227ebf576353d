"""The tokenizer in a GGUF file's metadata: its tokens, merges and types, and a text through them."""

from __future__ import annotations

import json
import struct
import tempfile
from dataclasses import replace
from pathlib import Path
from random import Random

from apr_falsify.formats.weights import open_model
from apr_falsify.oracle.tokenizer import decode, encode
from tests.fuzz import blobs, maps
from tests.fuzz.folders import Folder
from tests.fuzz.odd import TEXTS
from tests.fuzz.readers.inputs import Input, Maker
from tests.fuzz.readers.models import with_value
from tests.unit.gguf_models import write_gguf
from tests.unit.helpers import TINY

_PROMPT = "What is 2+2?"


def gguf_tokenizer(folder: Path) -> Maker:
    """A file that is read for its tokenizer alone: metadata, and no tensor."""
    seed = maps.gguf(_sound())
    model = open_model(TINY)
    shown, count = Folder(folder), iter(range(1 << 62))

    def make(chance: Random) -> Input:
        way = chance.random()
        if way < 0.4:
            data, said = with_value(seed, chance)
        elif way < 0.7:
            data, said = _with_texts(seed, chance)
        else:
            data, said = blobs.changed(seed, chance)
        name = f"{next(count)}.gguf"  # a tokenizer is kept under the path it was read from
        size = shown.show({name: data})
        read_from = replace(model, path=folder / name, format="gguf")
        return Input(read=lambda: decode(read_from, encode(read_from, _PROMPT)), size=size, said=said)

    return make


def _sound() -> bytes:
    tokens = json.loads((TINY / "vocab.json").read_text())
    merges = (TINY / "merges.txt").read_text().splitlines()
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": sorted(tokens, key=tokens.__getitem__),
        "tokenizer.ggml.merges": [line for line in merges if not line.startswith("#")],
        "tokenizer.ggml.token_type": [1] * (len(tokens) - 1) + [3],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
    }
    with tempfile.TemporaryDirectory() as place:
        return write_gguf(Path(place) / "x.gguf", {}, metadata).read_bytes()


def _with_texts(seed: blobs.Blob, chance: Random) -> tuple[bytes, tuple[str, ...]]:
    """Write an array of texts anew: strange ones among them, some gone, twice or in disorder."""
    name = f"tokenizer.ggml.{chance.choice(('tokens', 'merges'))}"
    key = next(span for span in seed.sections if span.name == name)
    start = next(span.start for span in seed.numbers if span.name == f"type of {name}")
    texts = _texts(seed.data[start + 4 : key.stop])
    at = chance.randrange(len(texts))
    text = chance.choice(TEXTS).encode("utf-8", "surrogatepass")[:300]
    changed = chance.choice(
        (
            [*texts[:at], text, *texts[at + 1 :]],
            [*texts[:at], chance.choice(texts), *texts[at + 1 :]],
            texts[:at],
            [*texts, text + b" " + text, text],
            chance.sample(texts, len(texts)),
        )
    )
    parts = [struct.pack("<Q", len(one)) + one for one in changed]
    data = struct.pack("<IIQ", 9, 8, len(changed)) + b"".join(parts)
    return seed.data[:start] + data + seed.data[key.stop :], (f"{name}[{at}] and others: {text!r:.40}",)


def _texts(data: bytes) -> list[bytes]:
    """Return the texts of an array: its type, their number, and each with its length before it."""
    found, at = [], 12
    while at < len(data):
        length = int.from_bytes(data[at : at + 8], "little")
        found.append(data[at + 8 : at + 8 + length])
        at += 8 + length
    return found
