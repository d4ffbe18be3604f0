"""`clf-run --annotate`: copies of the images with their labels and scores."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from odd_images import drawing, odd_images
from PIL import Image

from clf_runtime import Classifier, Prediction, Score
from clf_runtime.sinks import annotate
from clf_runtime.sinks.annotate import MARKER, annotate_image, target_path
from clf_runtime.sources import ImageSource


@pytest.fixture
def run(command, model):
    return lambda *arguments, **options: command("clf-run", "-m", model, *arguments, **options)


def names(folder: Path) -> list[str]:
    """Return the files in a folder, without the marker."""
    files = (str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in files if name != MARKER)


def prediction(score: float = 0.75, label: str = "cat", index: int | None = 3) -> Prediction:
    top = (Score("cat", score), Score("a very long label, longer than there is room for, by far", 0.1))
    return Prediction("a.png", label, index, score, top, "CPUExecutionProvider")


def test_every_kind_of_image_is_written_upright_and_in_full_size(run, tmp_path):
    (tmp_path / "in").mkdir()
    paths = odd_images(tmp_path / "in")
    done = run("in", "--annotate", "out")
    assert done.code == 0, done.err
    expected = {name if Path(name).suffix in (".jpg", ".png") else f"{name}.png" for name in paths}
    assert names(tmp_path / "out") == sorted(f"in/{name}" for name in expected)
    for orientation in range(1, 9):
        with Image.open(tmp_path / f"out/in/orientation-{orientation}.jpg") as image:
            assert 0x0112 not in image.getexif()
            assert (image.height > image.width) == (orientation >= 5)
    with Image.open(tmp_path / "out/in/huge.jpg") as image:
        assert image.width == 900


def test_a_bar_below_is_as_long_as_the_probability_and_covers_nothing():
    original = drawing(400, 300)
    image = annotate_image(original.copy(), prediction(0.75))
    assert np.array_equal(np.asarray(image)[:300], np.asarray(original))
    row = np.asarray(image)[302]
    assert (row[:300] == annotate._GREEN).all()
    assert (row[300:] == annotate._BACKGROUND).all()


def test_the_label_unknown_has_another_color():
    row = np.asarray(annotate_image(drawing(400, 300), prediction(0.5, "unknown", None)))[302]
    assert (row[:200] == annotate._AMBER).all()


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (5, 90), (90, 5), (3000, 2000), (20_000, 40)])
def test_labels_are_legible_below_images_of_any_size(size):
    image = annotate_image(drawing(*size), prediction(0.0))
    assert 240 <= image.width <= 16_384
    below = np.asarray(image)[-image.height // 5 :]
    assert (below == 255).all(axis=2).any()  # the text is white, and no part of the image is


def test_a_copy_with_a_thousand_labels_has_the_first_ones_only():
    many = Prediction("a", "label 0", 0, 0.1, tuple(Score(f"label {row}", 0.1) for row in range(1000)), "CPU")
    assert annotate_image(drawing(300, 200), many).size == (300, 200 + 20 * 25)


class CountingFont:
    """A font that counts how many letters are measured."""

    def __init__(self, font) -> None:
        self._font = font
        self.measured = 0

    def getlength(self, text: str) -> float:
        self.measured += len(text)
        return self._font.getlength(text)


def test_a_label_of_any_length_is_shortened_in_a_few_steps():
    font = CountingFont(annotate._default_font(20))
    shown = annotate._shorten("x" * 30_000, font, 400)
    assert shown.endswith("x...")
    assert 380 < font.getlength(shown) <= 400
    assert font.measured < 100_000  # letter by letter, it was 450 million
    assert annotate._shorten("xyz", font, 5) == ""
    assert annotate._shorten("xyz", font, 400) == "xyz"
    assert annotate_image(drawing(300, 200), prediction(0.5, "x" * 30_000)).size == (300, 250)


@pytest.fixture
def fonts(tmp_path, monkeypatch):
    """The only folder of system fonts."""
    annotate._find_system_font.cache_clear()
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_DIRS", str(tmp_path))
    (tmp_path / "fonts").mkdir()
    yield tmp_path / "fonts"
    annotate._find_system_font.cache_clear()


def test_letters_that_no_font_covers_are_replaced(fonts):
    own = annotate._default_font(20)
    assert annotate._choose_font("café Ñandú 北\n", own) == ("cafe Nandu ??", own)
    assert annotate._choose_font("plain", own) == ("plain", own)


@pytest.mark.skipif(sys.platform != "linux", reason="Pillow searches for fonts in XDG_DATA_HOME on Linux only")
def test_a_label_is_drawn_with_a_system_font_that_covers_its_letters(fonts):
    matplotlib = pytest.importorskip("matplotlib")
    shutil.copy(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf"), fonts)
    shown, font = annotate._choose_font("Журавль é\t", annotate._default_font(20))
    assert shown == "Журавль é?"
    assert (font.getname()[0], font.size) == ("DejaVu Sans", 20)
    assert annotate._choose_font("北", annotate._default_font(20))[0] == "?"
    image = annotate_image(drawing(400, 300), prediction(0.5, "Журавль", 0))
    assert (np.asarray(image)[-60:] == 255).all(axis=2).any()


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("a/b.jpg", "a/b.jpg"),
        ("./a//b.JPEG", "a/b.JPEG"),
        ("/etc/x.png", "etc/x.png"),
        ("../../x.png", "_/_/x.png"),
        ("a/../../x.png", "_/x.png"),
        ("a.tif", "a.tif.png"),
        ("noname", "noname.png"),
        ("-", "stdin.png"),
        ("/", "_.png"),
    ],
)
def test_a_copy_has_the_path_of_its_result_below_the_folder(name, path):
    assert target_path(name) == Path(path)


def test_a_long_name_is_shortened_and_stays_unique():
    paths = {str(target_path("x" * 240 + f"{number}.jpg")) for number in range(3)}
    assert len(paths) == 3
    assert all(len(path) <= 200 and path.endswith(".jpg") for path in paths)


def test_images_of_the_same_name_in_different_folders_do_not_overwrite_each_other(run, tmp_path, samples):
    for name in ("a/x.png", "b/x.png", "b/X.png", "b/x.tif.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(samples[0], tmp_path / name)
    with Image.open(samples[0]) as image:
        image.save(tmp_path / "b/x.tif")
    (tmp_path / "at").mkdir()
    arguments = ["../a/x.png", "../b/x.png", "../b/X.png", "../b/x.tif", "../b/x.tif.png", tmp_path / "b/x.png"]
    assert run(*arguments, "--annotate", "out", cwd=tmp_path / "at").code == 0
    written = names(tmp_path / "at/out")
    assert len(written) == 6
    assert {"_/a/x.png", "_/b/x.png", "_/b/X-2.png", "_/b/x.tif.png", "_/b/x.tif-2.png"} < set(written)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "at", "b"]


def test_an_image_that_cannot_be_read_has_no_copy(run, tmp_path, samples):
    (tmp_path / "bad.png").write_text("Dear Sir or Madam")
    shutil.copy(samples[0], tmp_path / "good.png")
    assert run("bad.png", "empty", "good.png", "--annotate", "out").code == 1
    assert names(tmp_path / "out") == ["good.png"]


def test_an_image_on_stdin_has_a_copy_too(run, tmp_path, samples):
    assert run("-", "--annotate", "out", stdin=samples[0].read_bytes()).code == 0
    assert names(tmp_path / "out") == ["stdin.png"]


def test_only_a_new_an_empty_or_an_annotated_folder_is_written_to(run, tmp_path, samples):
    (tmp_path / "in").mkdir()
    photo = Path(shutil.copy(samples[0], tmp_path / "in/x.png"))
    before = photo.read_bytes()
    (tmp_path / "empty").mkdir()
    for folder, message in {
        ".": "the folder contains other files; name a new or an empty one",
        "in": "the folder contains other files",
        "in/x.png": "this is a file; name a folder",
        "in/out": "the folder is inside in, which is read; name a folder elsewhere",
    }.items():
        done = run("in", "-r", "--annotate", folder)
        assert done.code == 2
        assert message in done.error
    for _ in range(2):  # the second run replaces the copies of the first one
        assert run("in", "-r", "--annotate", "empty").code == 0
    assert run("in", "--annotate", "in/out").code == 0
    assert run("in/out", "--annotate", "in/out").code == 2
    assert photo.read_bytes() == before
    assert names(tmp_path / "empty") == ["in/x.png"]


def test_a_link_does_not_lead_out_of_the_folder(run, tmp_path, samples):
    for name in ("in", "out", "elsewhere"):
        (tmp_path / name).mkdir()
    (tmp_path / "in/inside").mkdir()
    shutil.copy(samples[0], tmp_path / "in/inside/x.png")
    (tmp_path / "out" / MARKER).touch()
    (tmp_path / "out/in").symlink_to(tmp_path / "elsewhere")
    done = run("in", "-r", "--annotate", "out")
    assert done.code == 4
    assert "a link leads out of out" in done.error
    assert not list((tmp_path / "elsewhere").iterdir())  # not even a folder for the copy


@pytest.mark.parametrize("link", ["out", "out/in"])
def test_a_link_in_a_circle_is_one_line(run, tmp_path, samples, link):
    (tmp_path / "in").mkdir()
    shutil.copy(samples[0], tmp_path / "in/x.png")
    if link != "out":
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / MARKER).touch()
    (tmp_path / link).symlink_to(tmp_path / link)
    done = run("in", "--annotate", "out/deeper" if link == "out" else "out")
    assert done.code == 4
    assert str(link) in done.error


def test_a_resumed_run_writes_the_remaining_copies(run, tmp_path, samples):
    (tmp_path / "in").mkdir()
    for sample in samples:
        shutil.copy(sample, tmp_path / "in")
    code = (
        "import os, signal\n"
        "from clf_runtime import cli\n"
        "from clf_runtime.sinks import annotate, output\n"
        "output.SECONDS_BETWEEN_CHECKPOINTS = 0\n"
        "write, remaining = annotate.Annotations._write, iter([None] * 5)\n"
        "def write_five(*arguments):\n"
        "    next(remaining, 9) == 9 and os.kill(os.getpid(), signal.SIGKILL)\n"
        "    write(*arguments)\n"
        "annotate.Annotations._write = write_five\n"
        "cli.main()\n"
    )
    arguments = ["-m", samples[0].parent.parent / "model.onnx", "in", "-o", "results", "--annotate", "out"]
    subprocess.run([sys.executable, "-c", code, *arguments], cwd=tmp_path)
    assert len(names(tmp_path / "out")) == 5
    written_ns = (tmp_path / "out/in" / samples[0].name).stat().st_mtime_ns
    done = run("in", "-o", "results", "--annotate", "out", "--resume")
    assert "16 images (5 by the interrupted run)" in done.err
    assert names(tmp_path / "out") == [f"in/{path.name}" for path in samples]
    assert (tmp_path / "out/in" / samples[0].name).stat().st_mtime_ns == written_ns


def test_a_resumed_run_does_not_overwrite_the_copies_of_skipped_images(tmp_path, model):
    annotations = annotate.Annotations(tmp_path / "out", Classifier.load(model).spec.preprocess)
    annotations.create_folder()
    drawing(40, 30).save(tmp_path / "x.png")
    annotations.skip(ImageSource("x.png", str(tmp_path / "x.png")))
    annotations.draw(ImageSource("X.png", str(tmp_path / "x.png")), prediction())
    assert names(tmp_path / "out") == ["X-2.png"]


def test_an_image_that_is_removed_after_its_classification_has_no_copy(tmp_path, model, samples):
    path = str(shutil.copy(samples[0], tmp_path))
    classifier = Classifier.load(model)
    annotations = annotate.Annotations(tmp_path / "out", classifier.spec.preprocess)
    annotations.create_folder()
    ((source, result),) = classifier.predict_sources([ImageSource(path, path)])
    Path(path).unlink()
    annotations.draw(source, result)
    assert names(tmp_path / "out") == []
