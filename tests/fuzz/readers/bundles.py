"""Evidence bundles, as a directory and as a zip; most often their statement fits what was changed."""

from __future__ import annotations

import base64
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from random import Random

from apr_falsify.errors import AprFalsifyError
from apr_falsify.evidence.bundle import read_bundle
from apr_falsify.evidence.facts_reader import read_facts
from apr_falsify.evidence.files import BISECTION, BUNDLE, ENVELOPE, REPORT, STATEMENT, Contents, sha256
from apr_falsify.evidence.sign import SigningKey, check_envelope, envelope_bytes, public_key, read_public_key
from apr_falsify.evidence.statement import statement_bytes
from apr_falsify.evidence.verify import verify, verify_contents
from tests.fuzz import folders, trees, zips
from tests.fuzz.folders import Files, Folder
from tests.fuzz.readers.documents import REPOSITORY
from tests.fuzz.readers.inputs import Input, Maker
from tests.fuzz.zips import Member
from tests.support import DATA

_SEED = bytes(range(32))


def vendored(name: str) -> dict[str, bytes]:
    """Return the files of a bundle that an earlier version wrote, but for its report."""
    with zipfile.ZipFile(DATA / name) as archive:
        files = {one: archive.read(one) for one in archive.namelist() if not one.endswith("/")}
    top = next(one for one in files if one.endswith(STATEMENT)).removesuffix(STATEMENT)
    return {one.removeprefix(top): data for one, data in files.items() if not one.endswith(REPORT)}


def _small() -> dict[str, bytes]:
    """Return a bundle of this repository that holds no trace."""
    root = REPOSITORY / "evidence" / "FALSIFY-BISECT-001"
    found = {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }
    return {name: data for name, data in found.items() if name != REPORT}


def _key() -> SigningKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return SigningKey(id="lane", private=Ed25519PrivateKey.from_private_bytes(_SEED))


def _resealed(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the files with a statement that fits them, or names their digests where the facts are broken."""
    digests = {name: sha256(data) for name, data in files.items()}
    try:
        facts = read_facts(json.loads(files[BUNDLE]))
        return {**files, STATEMENT: statement_bytes(facts, digests)}
    except (ValueError, RecursionError):
        said = json.loads(files[STATEMENT])
        for one in said["subject"]:
            one["digest"]["sha256"] = digests.get(one["name"], "")
        return {**files, STATEMENT: json.dumps(said).encode()}


def _json_changed(
    files: Mapping[str, bytes], name: str, chance: Random, known: dict[str, trees.Tree]
) -> tuple[dict[str, bytes], tuple[str, ...]]:
    """Change a JSON file, or ``junit.xml``; most often the statement fits it then."""
    if name not in known and name.endswith(".json"):
        known[name] = trees.tree(json.loads(files[name]))
    large = trees.maybe_large(files[name], chance)
    if large is not None and name.endswith(".xml"):
        data, words = _large_xml(chance)
    elif large is not None:
        data, words = large
    elif name.endswith(".json"):
        data, words = trees.json_bytes(known[name], chance)
    else:
        data, words = trees.text_bytes(files[name], chance)
    changed: dict[str, bytes] = {**files, name: data}
    if name != STATEMENT and chance.random() < 0.85:
        changed = _resealed(changed)
    return changed, (name, *words)


def _large_xml(chance: Random) -> tuple[bytes, tuple[str, ...]]:
    """Return an XML of up to four megabytes: many tags, deep ones, many attributes."""
    size = chance.choice((1 << 16, 1 << 20, 1 << 22))
    piece = chance.choice((b"<a/>", b"<testcase/>", b"<a>", b'<testcase name=""><failure/></testcase>'))
    end = b"</a>" * (size // len(piece)) if piece == b"<a>" else b""
    if chance.random() < 0.2:
        return b"<x " + b"".join(b'a%d="" ' % n for n in range(size // 9)) + b"/>", (f"{size} of attributes",)
    return b"<x>" + piece * (size // len(piece)) + end + b"</x>", (f"{size} of {piece!r}",)


def folder(place: Path) -> Maker:
    """A bundle as a directory: its files, and which there are."""
    seeds = [_small(), vendored("bundle-v1.zip"), vendored("bundle-v1-live.zip")]
    known: list[dict[str, trees.Tree]] = [{}, {}, {}]
    shown = Folder(place)

    def make(chance: Random) -> Input:
        at = chance.choices((0, 1, 2), (6, 3, 1))[0]
        sound, files = seeds[at], seeds[at]
        changed: Files
        if chance.random() < 0.75:
            names = [name for name in files if not name.endswith(".bin")]
            changed, words = _json_changed(sound, chance.choice(names), chance, known[at])
        else:
            changed, words = folders.changed(sound, chance)
        size = shown.show(changed)

        def read() -> None:
            verify(place)
            read_bundle(place)

        return Input(read=read, size=size, said=words)

    return make


_BOMB_RATE = 0.001


def archive(place: Path) -> Maker:
    """A bundle as a zip."""
    small = tuple(Member(name=name, data=data) for name, data in _small().items())
    bare = vendored("bundle-v1.zip")
    nested = tuple(Member(name=f"bundle/{name}", data=data) for name, data in bare.items())
    shown = Folder(place)

    def make(chance: Random) -> Input:
        seed = chance.choice((small, nested))
        if chance.random() < _BOMB_RATE:
            name = chance.choice((REPORT, BUNDLE, STATEMENT, "bundle/report.html", "oracle/x.bin", "x"))
            size = chance.choice((60 << 20, zips.BOMB))
            data, words = zips.bomb(seed, name, b"", size), (f"{name} is a bomb of {size} bytes",)
        else:
            data, words = zips.changed(seed, chance)
        size = shown.show({"x.zip": data})

        def read() -> None:
            verify(place / "x.zip")
            read_bundle(place / "x.zip")

        return Input(read=read, size=size, said=words)

    return make


def bisection(place: Path) -> Maker:
    """A ``bisection.json`` and the traces that it is of, in memory, with a statement that fits."""
    sound = vendored("bundle-v1.zip")
    names = (BISECTION, *(name for name in sound if name.endswith("trace.json")))
    known: dict[str, trees.Tree] = {}

    def make(chance: Random) -> Input:
        files, words = _json_changed(sound, chance.choice(names), chance, known)
        files = _resealed(files)
        contents = Contents(path=place, files=files)
        return Input(read=lambda: verify_contents(contents), size=sum(map(len, files.values())), said=words)

    return make


def statement(place: Path) -> Maker:
    """A statement and its signed envelope, in memory."""
    sound, key = _small(), _key()
    plain = sound[STATEMENT]
    signed = envelope_bytes(plain, key)
    keys = {"lane": base64.b64encode(key.private.public_key().public_bytes_raw()).decode()}
    of_statement, of_envelope = trees.tree(json.loads(plain)), trees.tree(json.loads(signed))
    shown = Folder(place)

    def make(chance: Random) -> Input:
        way = chance.randrange(10)
        if way < 4:
            large = trees.maybe_large(plain, chance)
            data, words = large or trees.json_bytes(of_statement, chance)
            envelope = envelope_bytes(data, key)
            return Input(read=lambda: _both(data, envelope, keys), size=len(data), said=words)
        if way < 9:
            large = trees.maybe_large(signed, chance)
            data, words = large or trees.json_bytes(of_envelope, chance)
            return Input(read=lambda: check_envelope(data, plain, keys), size=len(data), said=words)
        data, words = trees.text_bytes(keys["lane"].encode(), chance)
        shown.show({"lane.pub": data})
        return Input(read=lambda: _as_key(place / "lane.pub", data), size=len(data), said=("key", *words))

    return make


def _both(data: bytes, envelope: bytes, keys: Mapping[str, str]) -> None:
    files = {STATEMENT: data, ENVELOPE: envelope}
    verify_contents(Contents(path=Path("bundle"), files=files), keys=keys)


def _as_key(path: Path, data: bytes) -> None:
    """Read a key from a file and from a contract's text."""
    try:
        read_public_key(path)
    except AprFalsifyError as error:
        str(error)
    public_key(data.decode("utf-8", "replace"))
