"""Signatures of a statement: DSSE envelopes with Ed25519 keys.

Source: the Dead Simple Signing Envelope, protocol.md and envelope.md, version 1.0.2. The signature is over
``PAE(payloadType, payload)``; a key id is a hint, so every listed key is tried. ``cryptography`` (extra
``[sign]``) does the arithmetic.

A key is made with ``openssl genpkey -algorithm ed25519 -out lane.pem``; ``apr-falsify evidence sign`` prints
the line that a contract lists it by.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from apr_falsify.errors import EvidenceError, MissingDependencyError
from apr_falsify.evidence.files import ENVELOPE, BundleProblem, json_bytes
from apr_falsify.reading import items, mapping, parse_json, text

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

PAYLOAD_TYPE = "application/vnd.in-toto+json"


@dataclass(frozen=True, slots=True, kw_only=True)
class SigningKey:
    """A private key and the id that contracts list its public half by.

    Attributes:
        id: the key's id.
        private: the Ed25519 private key.

    """

    id: str
    private: Ed25519PrivateKey

    @property
    def public(self) -> str:
        """Base64 of the 32 bytes of the public key."""
        return base64.b64encode(self.private.public_key().public_bytes_raw()).decode()


def pae(payload_type: str, payload: bytes) -> bytes:
    """Return the pre-authentication encoding of DSSE v1: what is signed."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def load_key(path: Path, key_id: str | None = None) -> SigningKey:
    """Read an Ed25519 private key from an unencrypted PEM file (PKCS #8).

    Args:
        path: the file.
        key_id: what contracts list it by; ``None`` for the file's name without its suffix.

    Raises:
        EvidenceError: it cannot be read, or is no such key.
        MissingDependencyError: ``cryptography`` is not installed.

    """
    _need_cryptography()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    # Another name where the file is there: openssl overwrites it without asking.
    new = "NEW.pem makes one" if os.path.lexists(path) else path
    remedy = f"openssl genpkey -algorithm ed25519 -out {new}"
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise EvidenceError(f"the key cannot be read: {error.strerror}", where=path, remedy=remedy) from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise EvidenceError(
            "is no unencrypted private key in PEM", where=path, expected="an Ed25519 key", remedy=remedy
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise EvidenceError("is no Ed25519 key", where=path, expected="an Ed25519 key", remedy=remedy)
    return SigningKey(id=key_id or path.stem, private=key)


def public_key(value: str, where: object = None) -> bytes:
    """Return the 32 bytes of a public key that is given in base64.

    Raises:
        EvidenceError: it is none.

    """
    try:
        raw = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    if len(raw) != 32:
        raise EvidenceError(
            "is no public key", where=where, expected="the base64 of the 32 bytes of an Ed25519 public key"
        )
    return raw


def read_public_key(path: Path) -> str:
    """Return the base64 of a public key that lies in a file, in PEM or as base64.

    Raises:
        EvidenceError: it cannot be read, or is no Ed25519 key.
        MissingDependencyError: it is PEM, and ``cryptography`` is not installed.

    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise EvidenceError(f"the key cannot be read: {error.strerror}", where=path) from error
    if b"-----BEGIN" not in data:
        return base64.b64encode(public_key(data.decode("utf-8", "replace").strip(), path)).decode()
    _need_cryptography()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(data)
    except ValueError as error:
        raise EvidenceError("is no public key in PEM", where=path, expected="an Ed25519 key") from error
    if not isinstance(key, Ed25519PublicKey):
        raise EvidenceError("is no Ed25519 key", where=path, expected="an Ed25519 key")
    return base64.b64encode(key.public_bytes_raw()).decode()


def envelope_bytes(statement: bytes, key: SigningKey, envelope: bytes | None = None) -> bytes:
    """Return the DSSE envelope of a statement, signed by ``key``.

    Args:
        statement: the bytes of ``statement.json``.
        key: the key.
        envelope: the envelope that is there already; its other signatures stay.

    Raises:
        EvidenceError: ``envelope`` is none of this statement.

    """
    try:
        others = [] if envelope is None else _signatures(envelope, statement)
    except (ValueError, KeyError) as error:
        raise EvidenceError(f"is no envelope of this statement: {error}", where=ENVELOPE) from error
    signature = key.private.sign(pae(PAYLOAD_TYPE, statement))
    return _envelope(statement, [one for one in others if one[0] != key.id] + [(key.id, signature)])


def _envelope(statement: bytes, signatures: list[tuple[str, bytes]]) -> bytes:
    signed = [{"keyid": key_id, "sig": base64.b64encode(one).decode()} for key_id, one in signatures]
    payload = base64.b64encode(statement).decode()
    return json_bytes({"payloadType": PAYLOAD_TYPE, "payload": payload, "signatures": signed})


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedSignature:
    """What an envelope shows.

    Attributes:
        signed_by: ids of the listed keys whose signatures are good.
        unlisted: ids of keys that are not listed, and so say nothing.
        problems: what is wrong with it.

    """

    signed_by: tuple[str, ...] = ()
    unlisted: tuple[str, ...] = ()
    problems: tuple[BundleProblem, ...] = ()


def check_envelope(envelope: bytes, statement: bytes, keys: Mapping[str, str]) -> CheckedSignature:
    """Check the signatures of an envelope.

    Args:
        envelope: the bytes of ``statement.dsse.json``.
        statement: the bytes of ``statement.json``, which its payload must be.
        keys: the listed keys: id -> base64 of the 32 bytes of the public key.

    Raises:
        EvidenceError: a listed key is none.
        MissingDependencyError: keys are listed, and ``cryptography`` is not installed.

    """
    try:
        signatures = _signatures(envelope, statement)
    except (ValueError, KeyError) as error:
        return CheckedSignature(problems=(_problem("bad-envelope", str(error)),))
    listed = {key_id: _loaded(key_id, key) for key_id, key in keys.items()} if signatures else {}
    message = pae(PAYLOAD_TYPE, statement)
    good, unlisted, problems = [], [], []
    for named, signature in signatures:
        fits = [key_id for key_id, key in listed.items() if _verifies(key, signature, message)]
        if named in fits:
            good.append(named)
        elif fits:
            problems.append(_problem("signature-misnamed", f"{fits[0]} signed it, and it names {named!r}"))
        elif named in listed:
            problems.append(_problem("bad-signature", f"the signature of {named!r} is not good"))
        else:
            unlisted.append(named)
    return CheckedSignature(signed_by=tuple(good), unlisted=tuple(unlisted), problems=tuple(problems))


def _problem(code: str, message: str) -> BundleProblem:
    return BundleProblem(code=code, file=ENVELOPE, message=message)


def _signatures(envelope: bytes, statement: bytes) -> list[tuple[str, bytes]]:
    """Return key id and signature of each; an envelope has one form, so that any changed byte shows."""
    found = mapping(parse_json(envelope.decode("utf-8")), "it")
    if found.get("payloadType") != PAYLOAD_TYPE:
        raise ValueError(f"its payloadType is {found.get('payloadType')!r:.80}, not {PAYLOAD_TYPE!r}")
    if _decoded(found.get("payload"), "its payload") != statement:
        raise ValueError("its payload is not statement.json")
    signatures = []
    for one in items(found.get("signatures"), "signatures"):
        entry = mapping(one, "a signature")
        signatures.append((text(entry.get("keyid"), "a keyid"), _decoded(entry.get("sig"), "a signature")))
    if not signatures:
        raise ValueError("it has no signature")
    if len({key_id for key_id, _ in signatures}) != len(signatures):
        raise ValueError("a key signed it twice")
    if _envelope(statement, signatures) != envelope:
        raise ValueError("it is not written as `apr-falsify evidence sign` writes it")
    return signatures


def _decoded(value: object, name: str) -> bytes:
    try:
        return base64.b64decode(text(value, name), validate=True)
    except binascii.Error as error:
        raise ValueError(f"{name} is no base64: {error}") from error


def _loaded(key_id: str, value: str) -> Ed25519PublicKey:
    raw = public_key(value, f"key {key_id}")
    _need_cryptography()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    return Ed25519PublicKey.from_public_bytes(raw)


def _verifies(key: Ed25519PublicKey, signature: bytes, message: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature

    try:
        key.verify(signature, message)
    except InvalidSignature:
        return False
    return True


def _need_cryptography() -> None:
    try:
        import cryptography  # noqa: F401 - only whether it is there
    except ImportError as error:
        raise MissingDependencyError(
            "signatures need cryptography", remedy="pip install 'apr-falsify[sign]'"
        ) from error
