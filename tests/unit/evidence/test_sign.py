"""Signatures, checked by others: openssl, securesystemslib, and the example of the DSSE specification."""

from __future__ import annotations

import base64
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.dsse import Envelope
from securesystemslib.signer import CryptoSigner, SSlibKey

from apr_falsify.errors import EvidenceError
from apr_falsify.evidence.bundle import Draft, write_bundle
from apr_falsify.evidence.files import ENVELOPE, STATEMENT
from apr_falsify.evidence.sign import (
    PAYLOAD_TYPE,
    SigningKey,
    check_envelope,
    envelope_bytes,
    load_key,
    pae,
    read_public_key,
)
from apr_falsify.evidence.verify import verify
from tests.unit.evidence.bundles import facts_of
from tests.unit.evidence.forging import checked, codes, files_of

STATEMENT_BYTES = b'{"_type": "https://in-toto.io/Statement/v1"}\n'


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key made by openssl, as the documentation says."""
    path = tmp_path_factory.mktemp("keys") / "lane-rtx4090.pem"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", path], check=True)
    return path


@pytest.fixture(scope="module")
def key(pem: Path) -> SigningKey:
    return load_key(pem)


@pytest.fixture(scope="module")
def keys(key: SigningKey) -> dict[str, str]:
    return {key.id: key.public}


def test_the_encoding_is_that_of_the_specification() -> None:
    """The example in secure-systems-lab/dsse, protocol.md, "Test Vectors"."""
    expected = b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    assert pae("http://example.com/HelloWorld", b"hello world") == expected
    assert pae("é", "é".encode()) == b"DSSEv1 2 \xc3\xa9 2 \xc3\xa9"


def test_a_key_is_known_by_its_files_name_and_listed_by_32_bytes(pem: Path, key: SigningKey) -> None:
    assert key.id == "lane-rtx4090"
    der = subprocess.run(
        ["openssl", "pkey", "-in", pem, "-pubout", "-outform", "DER"], check=True, capture_output=True
    ).stdout
    assert base64.b64decode(key.public) == der[-32:]


def test_openssl_finds_the_signature_good(tmp_path: Path, pem: Path, key: SigningKey) -> None:
    envelope = json.loads(envelope_bytes(STATEMENT_BYTES, key))
    (tmp_path / "message").write_bytes(pae(PAYLOAD_TYPE, STATEMENT_BYTES))
    (tmp_path / "signature").write_bytes(base64.b64decode(envelope["signatures"][0]["sig"]))
    command = ["openssl", "pkeyutl", "-verify", "-inkey", str(pem), "-rawin"]
    command += ["-in", str(tmp_path / "message"), "-sigfile", str(tmp_path / "signature")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done
    assert base64.b64decode(envelope["payload"]) == STATEMENT_BYTES
    assert envelope["payloadType"] == "application/vnd.in-toto+json"


def test_a_signature_of_openssl_is_found_good(
    tmp_path: Path, pem: Path, key: SigningKey, keys: dict[str, str]
) -> None:
    (tmp_path / "message").write_bytes(pae(PAYLOAD_TYPE, STATEMENT_BYTES))
    command = ["openssl", "pkeyutl", "-sign", "-inkey", str(pem), "-rawin", "-in", str(tmp_path / "message")]
    signature = subprocess.run(command, check=True, capture_output=True).stdout
    own = json.loads(envelope_bytes(STATEMENT_BYTES, key))
    assert base64.b64decode(own["signatures"][0]["sig"]) == signature
    assert check_envelope(envelope_bytes(STATEMENT_BYTES, key), STATEMENT_BYTES, keys).signed_by == (key.id,)


def test_securesystemslib_finds_our_envelope_good_and_the_same(key: SigningKey) -> None:
    ours = envelope_bytes(STATEMENT_BYTES, key)
    public = SSlibKey.from_crypto(key.private.public_key(), keyid=key.id)
    envelope = Envelope.from_dict(json.loads(ours))
    assert set(envelope.verify([public], 1)) == {key.id}
    theirs = Envelope(STATEMENT_BYTES, PAYLOAD_TYPE, {})
    theirs.sign(CryptoSigner(key.private, public))
    assert theirs.to_dict() == json.loads(ours)


def test_a_written_bundle_is_signed_and_its_signature_pins_it(
    tmp_path: Path, key: SigningKey, keys: dict[str, str]
) -> None:
    write_bundle(Draft(facts=facts_of()), tmp_path / "bundle", key=key)
    found = verify(tmp_path / "bundle", keys=keys)
    assert (found.state, found.signed_by, found.pinned_by) == ("verified", (key.id,), ("signature",))
    assert verify(tmp_path / "bundle").state == "unpinned"


def test_a_signature_by_a_key_that_is_not_listed_pins_nothing(key: SigningKey) -> None:
    files = files_of(Draft(facts=facts_of()), key=key)
    other = SigningKey(id="other", private=Ed25519PrivateKey.generate())
    found = checked(files, keys={other.id: other.public})
    assert found.holds
    assert (found.state, found.signed_by) == ("unpinned", ())
    assert any(key.id in one for one in found.not_checked)


def test_another_key_under_a_listed_name_fails(key: SigningKey, keys: dict[str, str]) -> None:
    impostor = SigningKey(id=key.id, private=Ed25519PrivateKey.generate())
    files = files_of(Draft(facts=facts_of()), key=impostor)
    assert codes(checked(files, keys=keys)) == {"bad-signature"}


def test_the_envelope_of_another_bundle_fails(key: SigningKey, keys: dict[str, str]) -> None:
    files = files_of(Draft(facts=facts_of()), key=key)
    other = files_of(Draft(facts=facts_of(contract_version="9.9.9")), key=key)
    assert codes(checked({**files, ENVELOPE: other[ENVELOPE]}, keys=keys)) == {"bad-envelope"}


def test_a_forger_who_reseals_a_signed_bundle_is_found_out(key: SigningKey, keys: dict[str, str]) -> None:
    files = files_of(Draft(facts=facts_of()), key=key)
    other = files_of(Draft(facts=facts_of(contract_version="9.9.9")))
    forged = {**other, ENVELOPE: files[ENVELOPE]}
    assert not checked(forged, keys=keys).holds
    assert not checked(forged).holds


def test_two_keys_may_sign_and_a_second_signature_keeps_the_first(key: SigningKey) -> None:
    files = files_of(Draft(facts=facts_of()), key=key)
    second = SigningKey(id="reviewer", private=Ed25519PrivateKey.generate())
    both = {**files, ENVELOPE: envelope_bytes(files[STATEMENT], second, files[ENVELOPE])}
    found = checked(both, keys={key.id: key.public, second.id: second.public})
    assert found.signed_by == (key.id, second.id)
    assert checked(both, keys={second.id: second.public}).signed_by == (second.id,)


ENVELOPES: dict[str, Any] = {
    "no signature": {"signatures": []},
    "no keyid": {"signatures": [{"sig": "AAAA"}]},
    "not base64": {"payload": "%%%"},
    "payload of another": {"payload": base64.b64encode(b"{}").decode()},
    "other payload type": {"payloadType": "text/plain"},
    "signatures are no list": {"signatures": {}},
    "a key more": {"novelty": 1},
}


@pytest.mark.parametrize("change", ENVELOPES.values(), ids=list(ENVELOPES))
def test_an_envelope_that_is_none_fails(key: SigningKey, keys: dict[str, str], change: Any) -> None:
    files = files_of(Draft(facts=facts_of()), key=key)
    data = {**json.loads(files[ENVELOPE]), **change}
    assert codes(checked({**files, ENVELOPE: json.dumps(data).encode()}, keys=keys)) == {"bad-envelope"}


def test_keys_that_are_none_are_refused(tmp_path: Path, pem: Path) -> None:
    rsa, encrypted, text = tmp_path / "rsa.pem", tmp_path / "encrypted.pem", tmp_path / "text.pem"
    subprocess.run(["openssl", "genpkey", "-quiet", "-algorithm", "RSA", "-out", rsa], check=True)
    subprocess.run(
        ["openssl", "pkey", "-in", pem, "-aes256", "-passout", "pass:x", "-out", encrypted], check=True
    )
    text.write_text("no key")
    for path in (rsa, encrypted, text, tmp_path / "nowhere.pem"):
        with pytest.raises(EvidenceError):
            load_key(path)
        with pytest.raises(EvidenceError):
            read_public_key(path)


def test_a_file_that_is_no_key_is_never_named_as_one_to_be_written(tmp_path: Path) -> None:
    """``openssl genpkey -out FILE`` overwrites without asking."""
    (tmp_path / "contract.yaml").write_text("no key")
    with pytest.raises(EvidenceError) as caught:
        load_key(tmp_path / "contract.yaml")
    assert "-out NEW.pem" in str(caught.value)


@pytest.mark.parametrize("value", ["", "AAAA", "%%%", "A" * 43, "é"])
def test_a_listed_key_that_is_none_is_refused(key: SigningKey, value: str) -> None:
    files = files_of(Draft(facts=facts_of()), key=key)
    with pytest.raises(EvidenceError, match="public key"):
        checked(files, keys={"lane": value})


def test_a_public_key_is_read_from_pem_and_from_base64(tmp_path: Path, pem: Path, key: SigningKey) -> None:
    public = tmp_path / "lane.pub"
    subprocess.run(["openssl", "pkey", "-in", pem, "-pubout", "-out", public], check=True)
    assert read_public_key(public) == key.public
    public.write_text(key.public + "\n")
    assert read_public_key(public) == key.public
