"""`clf-train --compare`: two trained models side by side on the test split that they have in common."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from conftest import run_command

from clf_runtime.spec import ModelSpec, Normalize, Preprocess
from clf_train.comparing import ChangedImage, ComparedModel, ModelComparison
from clf_train.comparison_format import format_comparison

OPTIONS = ("clf-train", "--model", "tiny-convnet")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with three trained models of the digits: short, long, and other (another seed)."""
    folder = tmp_path_factory.mktemp("trained")
    for name, options in (("short", (0.1,)), ("long", (2, "--size", 10)), ("other", (0.1, "--seed", 1))):
        done = run_command(*OPTIONS, "-a", name, "--epochs", *options, cwd=folder)
        assert done.code == 0, done.err
    return folder


def accuracy(folder: Path) -> float:
    return ModelSpec.from_json((folder / "model.json").read_text(), "").metrics.accuracy


def test_two_models_are_compared_on_the_test_split_that_they_have_in_common(command, trained):
    before = sorted(path.name for path in trained.rglob("*"))
    done = command("clf-train", "-a", "long", "--compare", "short", cwd=trained)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    accuracies = accuracy(trained / "long"), accuracy(trained / "short")
    assert re.split(r"  +", lines[0]) == ["artifacts", "model", "input", "accuracy", "95 % interval"]
    assert lines[1].split()[:4] == ["long", "tiny-convnet", "10x10", "L"]
    assert [f"{100 * value:.2f} %" in line for value, line in zip(accuracies, lines[1:3], strict=True)] == [True, True]
    assert f"long against short: {100 * (accuracies[0] - accuracies[1]):+.2f} pp (95 % interval +" in done.out
    assert "they differ" in done.out
    assert re.search(r"\d+ of 359 test images changed: \d+ fixed, \d+ broken, \d+ wrong in another way", done.out)
    assert re.search(r"^digits/\d{4}\.png +\d +\d +\d$", done.out, flags=re.MULTILINE)
    assert sorted(path.name for path in trained.rglob("*")) == before


def test_the_json_lists_every_image_that_changed(command, trained):
    result = json.loads(command("clf-train", "-a", "long", "--compare", "short", "--format", "json", cwd=trained).out)
    assert [model["artifacts"] for model in result["models"]] == ["long", "short"]
    assert result["images"] == 359
    assert result["models"][0]["accuracy"] == accuracy(trained / "long")
    assert result["models"][1]["accuracy"] == accuracy(trained / "short")
    fixed = sum(image["predicted"][0] == image["label"] for image in result["changed"])
    broken = sum(image["predicted"][1] == image["label"] for image in result["changed"])
    assert (result["fixed"], result["broken"]) == (fixed, broken)
    assert result["difference"] == pytest.approx((fixed - broken) / 359)
    assert result["interval"][0] < result["difference"] < result["interval"][1]
    assert all(image["predicted"][0] != image["predicted"][1] for image in result["changed"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("other",), "short and other: have different test splits (--seed 0 and 1), and images of one may have"),
        (("none",), "none: no finished model; clf-train makes one, -a names another folder"),
        (("foreign",), "foreign: model.json names a factory outside clf-edge, own:net; if you trust it, "),
        (("letters",), "short and letters: have different labels (only one has 9, ten); expected two models of"),
        (("imported",), "imported: was imported without images, so it has no test split; import it with --data"),
        (("long", "--data", "nowhere"), "nowhere: no such folder, and no data set of this name"),
    ],
)
def test_models_that_cannot_be_compared_are_one_error_line(command, trained, tmp_path, arguments, message):
    for name in ("short", "long", "other"):
        shutil.copytree(trained / name, tmp_path / name)
    for name in ("foreign", "letters", "imported"):
        shutil.copytree(trained / "long", tmp_path / name)
        spec = json.loads((tmp_path / name / "model.json").read_text())
        if name == "foreign":
            spec["architecture"] = "own:net"
        if name == "letters":
            spec["labels"][-1] = "ten"
        if name == "imported":
            spec["provenance"] |= {"data": None, "fingerprint": None}
        (tmp_path / name / "model.json").write_text(json.dumps(spec))
    done = command("clf-train", "-a", "short", "--compare", *arguments)
    assert done.code == 3
    assert message in done.error


def compare_answers(answers: list[tuple[str, str, str]]) -> ModelComparison:
    """Return the comparison of two models by (label, predicted, other predicted) of each image."""
    normalize = Normalize((0.5,), (0.5,))
    spec = ModelSpec(
        "lenet", ("a", "b"), Preprocess("L", 8, 8, "crop", 1, "bilinear", (255,)), normalize, 1, None, None
    )
    models = [
        ComparedModel(
            Path(name), spec, tuple(row[place] for row in answers), sum(row[0] == row[place] for row in answers)
        )
        for place, name in ((1, "new"), (2, "old"))
    ]
    changed = (ChangedImage(f"{at}.png", *row) for at, row in enumerate(answers) if row[1] != row[2])
    return ModelComparison(*models, len(answers), tuple(changed))


def test_a_difference_of_a_few_images_may_be_chance_and_one_of_many_is_not():
    few = compare_answers([("a", "a", "b")] * 3 + [("a", "b", "a")] + [("a", "a", "a")] * 96)
    assert (few.fixed, few.broken, few.difference, few.p_value) == (3, 1, 0.02, 0.625)
    assert few.interval == pytest.approx((-0.0232, 0.0625), abs=1e-4)
    text = format_comparison(few)
    assert "new against old: +2.00 pp (95 % interval -2.3 to +6.2 pp), exact McNemar p = 0.62: this may be" in text
    many = compare_answers([("a", "a", "b")] * 30 + [("a", "a", "a")] * 70)
    assert "exact McNemar p = 1.9e-09: they differ" in format_comparison(many)
    assert "and 10 more; --format json lists all of them" in format_comparison(many)
    same = compare_answers([("a", "a", "a")] * 10)
    assert format_comparison(same).endswith("0 of 10 test images changed: 0 fixed, 0 broken, 0 wrong in another way")
