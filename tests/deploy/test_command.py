"""The group `clf-deploy`."""

from __future__ import annotations

import click
import pytest

from clf_deploy.cli import command as group


def test_help_lists_the_commands_and_a_wrong_one_is_a_usage_error(command):
    shown = command("clf-deploy", "--help")
    assert (shown.code, all(name in shown.out for name in group.commands)) == (0, True)
    assert "..." not in shown.out.partition("Commands:")[2]  # each has its whole summary
    assert command("clf-deploy", "nonsense").code == 2
    missing = command("clf-deploy")
    assert (missing.code, missing.err.splitlines()[-1]) == (2, "Error: Missing command.")


@pytest.mark.parametrize("name", group.commands)
def test_each_command_has_a_help(name):
    with click.Context(group.commands[name]) as context:
        assert group.commands[name].get_help(context).startswith("Usage:")


def test_verify_prints_the_digest_of_a_model_and_rejects_a_damaged_one(command, model, tmp_path):
    done = command("clf-deploy", "verify", model)
    assert (done.code, "sha256 " in done.out) == (0, True)
    (tmp_path / "bad.onnx").write_bytes(model.read_bytes()[:-200])
    damaged = command("clf-deploy", "verify", "bad.onnx")
    assert (damaged.code, damaged.error.startswith("clf-deploy: bad.onnx: ")) == (3, True)


def test_the_status_of_an_empty_store_says_so(command, tmp_path):
    done = command("clf-deploy", "status", "--store", tmp_path / "none")
    assert (done.code, done.out) == (0, "")
    assert done.error.startswith(f"clf-deploy: {tmp_path / 'none'}: no version is installed there; --store")
