"""The policy of a machine: every command and every Classifier obeys it, and nothing weakens it."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
from serving import serving

from clf_deploy.signing.command import verify
from clf_deploy.signing.sign import Signer
from clf_runtime import Classifier, InvalidModelError, MachineError, onnx_file
from clf_runtime.classifier import load_own
from clf_runtime.cli import command as run
from clf_runtime.evaluation.cli import command as evaluate
from clf_runtime.signature import signature_path
from clf_serve.cli import command as serve


@pytest.fixture
def policy(tmp_path, keys, monkeypatch) -> Path:
    """The policy of this machine, at another path: it requires the key of the fleet."""
    path = tmp_path / "policy.toml"
    path.write_text(f"# of this machine\n\nrequire_signature = {json.dumps(str(keys.public))}  # the fleet\n")
    monkeypatch.setattr(onnx_file, "POLICY_PATH", str(path))
    return path


def test_a_policy_applies_to_every_classifier_without_an_argument(policy, signed, model):
    assert Classifier.load(signed).spec.serial == 5
    with pytest.raises(InvalidModelError, match="it has no signature"):
        Classifier.load(model)
    assert load_own(model).sha256  # what this process has written itself


def test_policies_and_keys_of_an_option_add_up(policy, signed, keys, tmp_path, monkeypatch):
    with pytest.raises(InvalidModelError, match="signed with another key"):
        Classifier.load(signed, require_signature=keys.other_public)
    second = tmp_path / "second.toml"
    shutil.copy(keys.other_public, tmp_path / "other.pub.pem")
    second.write_text('require_signature = ["other.pub.pem",]\n')  # relative to its folder
    monkeypatch.setenv("CLF_POLICY", str(second))
    with pytest.raises(InvalidModelError, match="signed with another key"):
        Classifier.load(signed)
    second.write_text(f'require_signature = ["other.pub.pem", {json.dumps(str(keys.public))}]')
    assert Classifier.load(signed).sha256


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# nothing",
        "require_signature = []",
        "require_signature = 7",
        "require_signatures = 'key.pem'",
        'require_signature = "key.pem" "other.pem"',
        'require_signature = "a.pem"\nrequire_signature = "b.pem"',
        'require_signature = [\n"a.pem"\n]',
        'require_signature = "a\\u0000.pem"',
        "[require_signature]",
        b"\xff",
    ],
)
def test_a_policy_that_is_not_understood_opens_no_model(policy, signed, text):
    policy.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(MachineError, match=r"policy\.toml"):
        Classifier.load(signed)


def test_a_policy_that_cannot_be_read_opens_no_model(policy, signed, tmp_path, monkeypatch):
    policy.unlink()
    assert Classifier.load(signed).sha256  # no policy
    policy.symlink_to("gone.toml")
    with pytest.raises(MachineError, match="cannot be read"):
        Classifier.load(signed)
    monkeypatch.setattr(onnx_file, "POLICY_PATH", str(tmp_path / ("x" * 300)))  # the system refuses to look
    with pytest.raises(MachineError, match="cannot be read"):
        Classifier.load(signed)
    monkeypatch.setattr(onnx_file, "POLICY_PATH", str(signed / "policy.toml"))  # no folder
    assert Classifier.load(signed).sha256
    monkeypatch.setenv("CLF_POLICY", str(tmp_path / "gone.toml"))
    with pytest.raises(MachineError, match="cannot be read"):
        Classifier.load(signed)


@pytest.fixture
def data(samples, tmp_path) -> Path:
    """Labeled images for clf-eval, and an empty folder for clf-run --watch."""
    (tmp_path / "in").mkdir()
    for label in ("0", "1"):
        shutil.copytree(samples[0].parent, tmp_path / "data" / label)
    return tmp_path / "data"


# Per command that opens a model: its arguments.
OPENING = (
    (run, "--model MODEL IMAGE"),
    (run, "--model MODEL --self-test"),
    (run, "--model MODEL --info"),
    (run, "--model MODEL --watch in -o results.jsonl"),
    (run, "--model MODEL --stream"),
    (evaluate, "MODEL --data data"),
    (serve, "--model MODEL --port 0"),
    (verify, "MODEL"),
)


def invoke(command: click.Command, arguments: str, model: Path, image: Path) -> None:
    words = [{"MODEL": str(model), "IMAGE": str(image)}.get(word, word) for word in arguments.split()]
    command.main(words, standalone_mode=False)


@pytest.mark.parametrize(("command", "arguments"), OPENING, ids=lambda value: getattr(value, "name", value))
def test_every_command_obeys_the_policy_and_its_option(
    command, arguments, model, samples, data, keys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    with pytest.raises(InvalidModelError, match="it has no signature"):
        invoke(command, f"--require-signature {keys.public} {arguments}", model, samples[0])
    policy = tmp_path / "policy.toml"
    policy.write_text(f"require_signature = {json.dumps(str(keys.public))}")
    monkeypatch.setattr(onnx_file, "POLICY_PATH", str(policy))
    with pytest.raises(InvalidModelError, match="it has no signature"):
        invoke(command, arguments, model, samples[0])


def test_processes_obey_the_policy_too(command, policy, signed, model, samples):
    done = command("clf-bench", "--model", model, "--rounds", 1, "--seconds", 0, CLF_POLICY=str(policy))
    assert (done.code, "it has no signature" in done.error) == (3, True)
    done = command("clf-run", "--doctor", "--model", model, CLF_POLICY=str(policy))
    assert (done.code, "it has no signature" in done.out) == (3, True)
    done = command("clf-run", "--model", signed, samples[0], CLF_POLICY=str(policy))
    assert (done.code, done.out.split("\t")[1]) == (0, samples[0].name[0])
    both = command("clf-run", "--require-signature", policy, "--server", "http://127.0.0.1:1", samples[0])
    assert (both.code, "does not go with --server" in both.err) == (2, True)


def test_a_service_refuses_a_model_that_is_not_signed_and_loads_one_that_is(signed, keys, model, tmp_path):
    path = tmp_path / "model.onnx"
    for name in (signed, signature_path(signed)):
        shutil.copy(name, tmp_path)
    with serving(path, "--require-signature", keys.public) as running:
        before = running.request("/readyz").body
        shutil.copy(model, tmp_path / "new")
        (tmp_path / "new").replace(path)
        running.wait_until(lambda: running.metric('clf_reloads_total{outcome="refused"}') >= 1)
        assert running.request("/readyz").body == before
        Signer(keys.private).sign(path)  # which arrives last
        running.wait_until(lambda: running.metric('clf_reloads_total{outcome="loaded"}') == 1)
        assert onnx_file.read(model).sha256.encode() in running.request("/readyz").body


def test_a_model_that_is_replaced_between_its_digest_and_its_signature_is_read_again(signed_copy, keys, monkeypatch):
    from clf_runtime import policy as module

    verify, swapped = module.verify_signature, []

    def verify_late(file, trusted):
        if not swapped:  # an update replaces both files just after the model was read
            swapped.append(shutil.copy(signed_copy, signed_copy.with_name("new")))
            Signer(keys.private).sign(signed_copy.with_name("new"))
            signature_path(signed_copy).write_bytes(b"of another version")
            signed_copy.with_name("new").replace(signed_copy)
            try:
                return verify(file, trusted)
            finally:
                signed_copy.with_name("new.sig").replace(signature_path(signed_copy))
        return verify(file, trusted)

    monkeypatch.setattr(module, "verify_signature", verify_late)
    assert Classifier.load(signed_copy, require_signature=keys.public).spec.serial == 5


def test_without_policy_and_option_nothing_more_is_imported(signed, keys, samples):
    code = (
        "import sys; from clf_runtime import Classifier; "
        f"Classifier.load({str(signed)!r}{{}}).predict({str(samples[0])!r}); print(*sys.modules)"
    )

    def modules(argument: str) -> set[str]:
        line = code.format(argument)
        done = subprocess.run([sys.executable, "-c", line], capture_output=True, text=True, check=True)
        return set(done.stdout.split())

    added = modules(f", require_signature={str(keys.public)!r}") - modules("")
    assert {"clf_runtime.policy", "clf_runtime.signature", "cryptography"} <= added
    # The modules that take long to import, or that only signing needs.
    assert not {
        name
        for name in added
        if name.endswith((".serialization", ".rsa", ".ciphers")) or name.partition(".")[0] in ("hashlib", "ssl")
    }
