"""The documents agree with the code: commands, options, exit codes, examples."""

from __future__ import annotations

import doctest
import os
import re
import shutil
import subprocess
from pathlib import Path

import click
import pytest
from conftest import BIN

from clf_batch.cli import command as batch_command
from clf_batch.report.cli import command as batch_report_command
from clf_deploy.cli import command as deploy_command
from clf_export.cli import command as export_command
from clf_runtime import Classifier, errors
from clf_runtime.bench.cli import command as bench_command
from clf_runtime.cli import command as run_command
from clf_runtime.errors import IMAGE_ERROR_KINDS
from clf_runtime.evaluation.cli import command as eval_command
from clf_serve.cli import command as serve_command
from clf_train.cli import command as train_command
from clf_train.cli_import import command as import_command

ROOT = Path(__file__).parent.parent
# Not the changelog, which names what was renamed.
PAGES = [
    path
    for folder in (ROOT, ROOT / "docs", ROOT / "docs/devices")
    for path in sorted(folder.glob("*.md"))
    if path.stem != "CHANGELOG"
]
COMMANDS = {
    command.name: command
    for command in (
        train_command,
        import_command,
        export_command,
        run_command,
        eval_command,
        bench_command,
        serve_command,
        deploy_command,
        batch_command,
    )
}
# The commands of the group, by both words.
SUBCOMMANDS = {f"{deploy_command.name} {name}": command for name, command in deploy_command.commands.items()}


def flags(command: click.Command) -> set[str]:
    parameters = [*command.params, *(batch_report_command.params if command is batch_command else ())]
    return {flag for parameter in parameters for flag in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}


NAME = "clf-(?:train|import|export|run|eval|bench|serve|batch|deploy)"


def mentions(text: str) -> list[tuple[str, set[str]]]:
    """Return every command line in a text: the command, and its options up to the next command or the line's end."""
    found = []
    for line in text.splitlines():
        for segment in re.split(rf"(?=\b{NAME}\b(?! -m))", line):
            name = re.match(rf"{NAME}\b(?: (?:{'|'.join(deploy_command.commands)})\b)?", segment)
            if name:
                code = re.split(r"[|;`&]| && ", segment)[0]
                found.append((name.group(), set(re.findall(r"(?<![\w-])(--?[a-z][\w-]*)", code))))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_and_option_on_a_page_exists(page):
    for command, used in mentions(page.read_text()):
        unknown = {flag for flag in used - flags((COMMANDS | SUBCOMMANDS)[command]) if not flag.startswith("--no-")}
        assert not unknown, f"{page.name}: {command} has no {unknown}"


@pytest.mark.parametrize("name", COMMANDS | SUBCOMMANDS)
def test_the_command_reference_covers_every_option(name):
    text = (ROOT / "docs/commands.md").read_text()
    heading = f"\n### {name}\n" if name in SUBCOMMANDS else f"\n## {name}\n"
    assert heading in text
    section = text.partition(heading)[2].partition("\n## ")[0] + text.partition("## clf-train")[0]
    if name in SUBCOMMANDS:
        section = section.partition("\n### ")[0]
    long = {flag for flag in flags((COMMANDS | SUBCOMMANDS)[name]) if flag.startswith("--")} - {"--help", "--version"}
    assert not {flag for flag in long if flag not in section}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_examples_in_the_help_are_valid_commands(name):
    examples = [line.strip() for line in COMMANDS[name].epilog.splitlines() if re.match(r"\s+(cat \S+ \| )?clf-", line)]
    assert len(examples) >= 3
    for example in examples:
        for command, used in mentions(example):
            assert used <= flags((COMMANDS | SUBCOMMANDS)[command])


def test_the_exit_codes_match_the_code():
    listed = re.findall(r"^\| (\d+) \|", (ROOT / "docs/commands.md").read_text(), flags=re.MULTILINE)
    codes = {value for name, value in vars(errors).items() if name.startswith("EXIT_")}
    assert {int(code) for code in listed} == codes


def test_the_kinds_of_image_errors_match_the_code():
    listed = dict(
        re.findall(r"^\| `([\w-]+)` \| (.+) \|$", (ROOT / "docs/commands.md").read_text(), flags=re.MULTILINE)
    )
    assert {kind: listed.get(kind) for kind in IMAGE_ERROR_KINDS} == IMAGE_ERROR_KINDS


def test_the_python_example_of_the_readme_runs(model, samples, tmp_path, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    shutil.copy(model, "model.onnx")
    for name, sample in zip(("img.jpg", "a.jpg", "b.jpg"), samples, strict=False):
        shutil.copy(sample, name)
    exec(compile(code, "README.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == samples[0].name[0]
    assert len(lines) == 3
    assert "Prediction(path='b.jpg'" in lines[2]


def test_the_examples_of_the_library_page_print_what_it_says(model, samples, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(model, "model.onnx")
    classifier = Classifier.load(model)
    for name, label in (("seven.png", "7"), ("one.png", "1")):
        shutil.copy(next(path for path in samples if classifier.predict(path).label == path.name[0] == label), name)
    failed, tried = doctest.testfile(str(ROOT / "docs/library.md"), module_relative=False)
    assert (failed, tried > 20) == (0, True)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_another_page_has_a_target(page):
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_the_documentation_builds_without_a_warning(tmp_path):
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    mkdocs = [BIN / "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"]
    done = subprocess.run(mkdocs, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "predict_files" in (tmp_path / "site/api/index.html").read_text()


def test_every_file_in_the_architecture_exists():
    text = (ROOT / "ARCHITECTURE.md").read_text()
    table = text.partition("## What lives where")[2].partition("## Decisions")[0]
    packages = {
        "clf_runtime": "runtime",
        "clf_serve": "runtime",
        "clf_deploy": "runtime",
        "clf_batch": "runtime",
        "clf_train": "train",
        "clf_export": "export",
    }
    for row in filter(lambda line: line.startswith("|"), table.splitlines()):
        folder = None
        for name in re.findall(r"`([\w/]+\.(?:py|html\.j2))`", row):
            package, _, rest = name.partition("/")
            folder, rest = (package, rest) if package in packages else (folder, name)
            assert folder is not None
            assert (ROOT / packages[folder] / folder / rest).exists() or rest == "cli.py", name


def test_no_file_contains_an_index_address_or_a_machine_specific_path():
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    for name in filter(None, names):
        content = (ROOT / name).read_bytes() if (ROOT / name).is_file() else b""
        for trace in (b"pypi" + b".org", b"/ro" + b"ot/", b"/wo" + b"rk/", b"index" + b"-url"):
            assert trace not in content, (name, trace)
