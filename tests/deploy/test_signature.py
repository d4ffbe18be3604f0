"""Signatures: those of the reference implementation are accepted, it accepts ours, and everything else is refused."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model_signing import hashing, signing, verifying

from clf_deploy.signing.sign import Signer, create_key
from clf_runtime import Classifier, InvalidModelError, UsageError, onnx_file
from clf_runtime.signature import read_public_key, signature_path, verify_signature

REFUSED = {
    "missing": "it has no signature (model.onnx.sig), and one is required",
    "wrong key": "signed with another key",
    "no hint": "changed after signing, or not signed with",
    "changed model": "not the file that was signed",
    "changed envelope": "changed after signing, or not signed with",
    "another file": "the signature of another file",
}


def sign_with_reference(model: Path, key: Path, config: Any = None) -> None:
    signer = signing.Config().use_elliptic_key_signer(private_key=key)
    if config is not None:
        signer.set_hashing_config(config)
    signer.sign(model, signature_path(model))


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a bundle as someone without the key could."""
    bundle = json.loads(signature_path(path).read_text())
    change(bundle)
    signature_path(path).write_text(json.dumps(bundle))


def edit_statement(path: Path, key: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a statement as the owner of the key could, and sign it again."""
    bundle = json.loads(signature_path(path).read_text())
    envelope = bundle["dsseEnvelope"]
    statement = json.loads(base64.b64decode(envelope["payload"]))
    payload = change(statement)
    payload = payload if isinstance(payload, bytes) else json.dumps(statement).encode()
    private = serialization.load_pem_private_key(key.read_bytes(), None)
    kind = envelope["payloadType"].encode()
    message = b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)
    envelope["payload"] = base64.b64encode(payload).decode()
    envelope["signatures"][0]["sig"] = base64.b64encode(private.sign(message, ec.ECDSA(hashes.SHA256()))).decode()
    signature_path(path).write_text(json.dumps(bundle))


def refusal(path: Path, *keys: Path) -> str:
    """Return the message with which a model is refused."""
    with pytest.raises(InvalidModelError) as error:
        Classifier.load(path, require_signature=keys)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("curve", ["P-256", "P-384", "P-521"])
def test_the_reference_implementation_verifies_our_signatures_and_we_verify_its(model, tmp_path, curve):
    private, public = create_key(tmp_path / "key.pem", curve)
    path = Path(shutil.copy(model, tmp_path / "model.onnx"))
    Signer(private).sign(path)
    verifying.Config().use_elliptic_key_verifier(public_key=public).verify(path, signature_path(path))
    sign_with_reference(path, private)
    key = verify_signature(onnx_file.read(path), [read_public_key(public)])
    bundle = json.loads(signature_path(path).read_text())
    assert bundle["verificationMaterial"]["publicKey"]["hint"] == key.fingerprint


def test_the_command_of_the_reference_implementation_verifies_our_signatures(signed, keys):
    command = [sys.executable, "-m", "model_signing", "verify", "key", str(signed)]
    command += ["--signature", str(signature_path(signed)), "--public_key", str(keys.public)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_vectors_of_the_standard_verify(model, tmp_path):
    vectors = Path(__file__).with_name("vectors")
    single = json.loads((vectors / "v1.0.0.sig").read_text())
    public = tmp_path / "pub.pem"
    public.write_bytes(base64.b64decode(single["verificationMaterial"]["publicKey"]["rawBytes"]))
    statement = json.loads(base64.b64decode(single["dsseEnvelope"]["payload"]))
    digest = statement["predicate"]["resources"][0]["digest"]
    path = tmp_path / statement["subject"][0]["name"]
    signed_file = replace(onnx_file.read(model), path=path, file_sha256=digest)
    shutil.copy(vectors / "v1.0.0.sig", signature_path(path))
    key = verify_signature(signed_file, [read_public_key(public)])
    folder = json.loads((vectors / "v1.1.0.sig").read_text())
    assert folder["verificationMaterial"]["publicKey"]["hint"] == key.fingerprint
    shutil.copy(vectors / "v1.1.0.sig", signature_path(path))
    with pytest.raises(InvalidModelError, match="2 resources, expected one"):  # its signature is valid
        verify_signature(signed_file, [key])


def test_a_key_of_openssl_signs_and_verifies(model, tmp_path):
    path = Path(shutil.copy(model, tmp_path / "model.onnx"))
    if shutil.which("openssl") is None:
        pytest.skip("no openssl")
    for arguments in (
        "ecparam -name secp384r1 -genkey -noout -out key.pem",  # also the older form, EC PRIVATE KEY
        "pkey -in key.pem -pubout -out pub.pem",
    ):
        subprocess.run(["openssl", *arguments.split()], cwd=tmp_path, check=True, capture_output=True)
    Signer(tmp_path / "key.pem").sign(path)
    assert Classifier.load(path, require_signature=tmp_path / "pub.pem").sha256


def test_a_signed_model_loads_with_any_of_several_keys(signed, keys):
    assert Classifier.load(signed, require_signature=str(keys.public)).spec.serial == 5
    assert Classifier.load(signed, require_signature=[keys.other_public, keys.public]).spec.serial == 5


@pytest.mark.parametrize("case", REFUSED)
def test_each_kind_of_wrong_signature_has_its_own_line(signed_copy, model, keys, tmp_path, case):
    key = keys.public
    if case == "missing":
        signature_path(signed_copy).unlink()
    elif case == "wrong key":
        key = keys.other_public
    elif case == "no hint":
        edit(signed_copy, lambda bundle: bundle["verificationMaterial"]["publicKey"].clear())
        key = keys.other_public
    elif case == "changed model":
        shutil.copy(model, signed_copy)
    elif case == "changed envelope":
        statement = base64.b64encode(b'{"_type": "https://in-toto.io/Statement/v1"}').decode()
        edit(signed_copy, lambda bundle: bundle["dsseEnvelope"].update(payload=statement))
    else:
        other = Path(shutil.copy(model, tmp_path / "other.onnx"))
        Signer(keys.private).sign(other)
        shutil.copy(signature_path(other), signature_path(signed_copy))
    assert REFUSED[case] in refusal(signed_copy, key)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda bundle: bundle.update(mediaType="application/vnd.dev.sigstore.bundle+json;version=0.1"), "mediaType"),
        (lambda bundle: bundle.update(verificationMaterial={"certificate": {"rawBytes": ""}}), "with a certificate"),
        (lambda bundle: bundle["verificationMaterial"].update(publicKey=7), "publicKey is missing or odd"),
        (lambda bundle: bundle["verificationMaterial"]["publicKey"].update(hint=7), "hint is missing or odd"),
        (lambda bundle: bundle.pop("dsseEnvelope"), "dsseEnvelope is missing"),
        (lambda bundle: bundle["dsseEnvelope"].update(payloadType="text/plain"), "unsupported payloadType"),
        (lambda bundle: bundle["dsseEnvelope"].update(payload="ä="), "payload is not base64"),
        (lambda bundle: bundle["dsseEnvelope"].update(signatures=[]), "0 signatures, expected one"),
        (lambda bundle: bundle["dsseEnvelope"]["signatures"].append({}), "2 signatures, expected one"),
        (lambda bundle: bundle["dsseEnvelope"].update(signatures=[7]), "1 signatures, expected one"),
        (lambda bundle: bundle["dsseEnvelope"]["signatures"][0].update(sig="MA=="), "changed after signing"),
    ],
)
def test_a_bundle_that_is_not_of_the_standard_is_refused(signed_copy, keys, change, reason):
    edit(signed_copy, change)
    assert reason in refusal(signed_copy, keys.public)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff", b"[]", b'{"a": 1, "a": 2}', b"[" * 90_000, b" " * 100_001, b"9" * 9_000, b'{"a":NaN}'],
    ids=repr,
)
def test_a_signature_that_is_no_json_or_too_large_is_refused(signed_copy, keys, content):
    signature_path(signed_copy).write_bytes(content)
    assert refusal(signed_copy, keys.public)


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_a_signature_that_is_no_file_is_refused(signed_copy, keys, kind):
    path = signature_path(signed_copy)
    path.unlink()
    if kind == "folder":
        path.mkdir()
    else:
        os.mkfifo(path)
    assert "not a file" in refusal(signed_copy, keys.public)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda statement: b"[]", "its statement is not an object"),
        (lambda statement: statement.update(_type="x"), "unsupported _type"),
        (lambda statement: statement.update(predicateType="https://slsa.dev/provenance/v1"), "predicateType"),
        (lambda statement: statement["predicate"]["serialization"].update(method="shards"), "unsupported method"),
        (lambda statement: statement["predicate"]["resources"].append({}), "2 resources, expected one"),
        (lambda statement: statement["predicate"]["resources"][0].update(algorithm="md5"), "unsupported algorithm"),
        (lambda statement: statement["predicate"]["resources"][0].update(name="a/b"), "unsupported name"),
        (lambda statement: statement["predicate"]["resources"][0].update(digest=7), "digest is missing or odd"),
        (lambda statement: statement["predicate"]["resources"][0].update(digest="\x1b[31m"), "not the file that was"),
    ],
)
def test_a_valid_signature_of_something_else_than_a_model_is_refused(signed_copy, keys, change, reason):
    edit_statement(signed_copy, keys.private, change)
    message = refusal(signed_copy, keys.public)
    assert reason in message
    assert "\x1b" not in message


def test_the_reference_implementation_signs_what_we_do_not_support_with_a_line_that_says_so(model, keys, tmp_path):
    path = Path(shutil.copy(model, tmp_path / "model.onnx"))
    blake = hashing.Config().use_file_serialization(hashing_algorithm="blake2")
    sign_with_reference(path, keys.private, blake)
    assert 'unsupported algorithm "blake2b"' in refusal(path, keys.public)
    sharded = hashing.Config().use_shard_serialization()
    sign_with_reference(path, keys.private, sharded)
    assert 'unsupported method "shards"' in refusal(path, keys.public)


def test_a_key_that_cannot_be_used_is_a_usage_error(signed, keys, tmp_path):
    rsa_key = rsa.generate_private_key(public_exponent=65537, key_size=2048).public_key()
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    pem = keys.public.read_bytes()
    wrong = {
        rsa_key.public_bytes(serialization.Encoding.PEM, spki): "not a key of the curves",
        keys.private.read_bytes(): "found a private key",
        b"": "found something else",
        pem.replace(b"M", b"!", 1): "is damaged",
    }
    for content, reason in wrong.items():
        (tmp_path / "pub.pem").write_bytes(content)
        with pytest.raises(UsageError, match=reason):
            Classifier.load(signed, require_signature=tmp_path / "pub.pem")
    encoded = bytearray(base64.b64decode("".join(pem.decode().split("-----")[2].split())))
    encoded[-1] ^= 1
    text = base64.encodebytes(bytes(encoded)).decode()
    (tmp_path / "pub.pem").write_text(f"-----BEGIN PUBLIC KEY-----\n{text}-----END PUBLIC KEY-----\n")
    shutil.copy(signed, tmp_path / "model.onnx")
    sign_with_reference(tmp_path / "model.onnx", keys.private)
    edit(tmp_path / "model.onnx", lambda bundle: bundle["verificationMaterial"]["publicKey"].clear())
    with pytest.raises(UsageError, match="not a point of the curve P-256"):
        Classifier.load(tmp_path / "model.onnx", require_signature=tmp_path / "pub.pem")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner, max_size=3),
    max_leaves=8,
)
PLACES = (
    *(("mediaType",), ("verificationMaterial",), ("verificationMaterial", "publicKey"), ("dsseEnvelope",)),
    *(("verificationMaterial", "publicKey", "hint"), ("dsseEnvelope", "payload"), ("dsseEnvelope", "payloadType")),
    *(("dsseEnvelope", "signatures"), ("dsseEnvelope", "signatures", 0), ("dsseEnvelope", "signatures", 0, "sig")),
)


@given(place=st.sampled_from(PLACES), value=JSON)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_value_in_any_place_is_refused_or_means_nothing(signed, keys, tmp_path_factory, place, value):
    path = tmp_path_factory.getbasetemp() / "fuzzed.onnx"
    bundle = json.loads(signature_path(signed).read_text())
    outer = bundle
    for key in place[:-1]:
        outer = outer[key]
    outer[place[-1]] = value
    signature_path(path).write_text(json.dumps(bundle))
    file = onnx_file.OnnxFile(**{**vars(onnx_file.read(signed)), "path": path})
    try:
        verify_signature(file, [read_public_key(keys.public)])
    except InvalidModelError as error:
        assert "\n" not in str(error)  # noqa: PT017 (what is accepted is checked below)
    else:
        assert place[-1] in ("hint", "publicKey", "verificationMaterial")  # nothing signed is in there


@given(content=st.binary(max_size=300), at=st.integers(0, 1_000))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_in_a_signature_are_refused_or_mean_the_same(signed, keys, tmp_path_factory, content, at):
    path = tmp_path_factory.getbasetemp() / "overwritten.onnx"
    original = signature_path(signed).read_bytes()
    signature_path(path).write_bytes(original[:at] + content + original[at + len(content) :])
    file = onnx_file.OnnxFile(**{**vars(onnx_file.read(signed)), "path": path})
    try:
        verify_signature(file, [read_public_key(keys.public)])
    except InvalidModelError as error:
        assert "\n" not in str(error)  # noqa: PT017
    else:
        accepted = json.loads(signature_path(path).read_bytes())["dsseEnvelope"]
        assert accepted["payload"] == json.loads(original)["dsseEnvelope"]["payload"]


def test_sign_and_keygen_report_what_they_cannot_do(command, signed_copy, keys, tmp_path):
    made = command("clf-deploy", "keygen", "new.pem", "--curve", "P-384")
    assert (made.code, made.out) == (0, "")
    assert (tmp_path / "new.pem").stat().st_mode & 0o77 == 0
    again = command("clf-deploy", "keygen", "new.pem")
    assert (again.code, "no key is overwritten" in again.error) == (3, True)
    done = command("clf-deploy", "sign", signed_copy, "--key", "new.pem")
    assert (done.code, "serial" in done.err) == (0, False)
    shown = command("clf-deploy", "verify", signed_copy, "--require-signature", "new.pub.pem")
    assert (shown.code, shown.out.endswith(", serial 5\n")) == (0, True)
    refused = command("clf-deploy", "verify", signed_copy, "--require-signature", keys.public)
    assert (refused.code, "signed with another key" in refused.error) == (3, True)
    wrong = command("clf-deploy", "sign", signed_copy, "--key", "new.pub.pem")
    assert (wrong.code, "no private key in PEM" in wrong.error) == (2, True)


def test_an_encrypted_key_needs_its_password(command, model, keys, tmp_path):
    shutil.copy(model, tmp_path / "model.onnx")
    (tmp_path / "link.onnx").symlink_to("model.onnx")
    key = serialization.load_pem_private_key(keys.private.read_bytes(), None)
    encryption = serialization.BestAvailableEncryption(b"secret")
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    (tmp_path / "key.pem").write_bytes(pem)
    sign = ("clf-deploy", "sign", "link.onnx", "--key", "key.pem")
    assert "CLF_KEY_PASSWORD is not set" in command(*sign).error
    assert "or not its password" in command(*sign, CLF_KEY_PASSWORD="wrong").error
    done = command(*sign, CLF_KEY_PASSWORD="secret")
    assert (done.code, "no serial number" in done.err) == (0, True)
    assert (tmp_path / "link.onnx.sig").exists()
    with pytest.raises(UsageError, match="is not encrypted, but CLF_KEY_PASSWORD is set"):
        Signer(keys.private, "secret")


def test_without_the_packages_the_commands_name_the_extra(signed, keys, tmp_path):
    code = "import sys; sys.modules['{0}'] = None; sys.argv[0] = '{1}'; from {2}.cli import main; main()"
    for module, program, package, arguments, extra in (
        (
            "cryptography",
            "clf-run",
            "clf_runtime",
            ["-m", signed, "x.png", "--require-signature", keys.public],
            "verify",
        ),
        ("model_signing", "clf-deploy", "clf_deploy", ["sign", signed, "--key", keys.private], "sign"),
    ):
        line = code.format(module, program, package)
        done = subprocess.run([sys.executable, "-c", line, *map(str, arguments)], capture_output=True, text=True)
        assert (done.returncode, f'pip install "clf-edge[{extra}]"' in done.stderr) == (4, True), done.stderr
