"""`clf-run --annotate`: the images with their answers drawn on."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from awkward import awkward_images, drawing
from PIL import Image

from clf_runtime import Prediction, Score
from clf_runtime.sinks import annotate
from clf_runtime.sinks.annotate import MARKER, annotated, target


@pytest.fixture
def run(command, model):
    return lambda *arguments, **options: command("clf-run", "-m", model, *arguments, **options)


def drawn(folder: Path) -> list[str]:
    """Give what a folder holds, but for the marker."""
    files = (str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in files if name != MARKER)


def answer(score: float = 0.75, label: str = "cat", index: int | None = 3) -> Prediction:
    top = (Score("cat", score), Score("a very long label, longer than there is room for, by far", 0.1))
    return Prediction("a.png", label, index, score, top, "CPUExecutionProvider")


def test_every_kind_of_image_is_drawn_upright_and_whole(run, tmp_path):
    (tmp_path / "in").mkdir()
    paths = awkward_images(tmp_path / "in")
    done = run("in", "--annotate", "out")
    assert done.code == 0, done.err
    expected = {name if Path(name).suffix in (".jpg", ".png") else f"{name}.png" for name in paths}
    assert drawn(tmp_path / "out") == sorted(f"in/{name}" for name in expected)
    for orientation in range(1, 9):
        with Image.open(tmp_path / f"out/in/orientation-{orientation}.jpg") as image:
            assert 0x0112 not in image.getexif()
            assert (image.height > image.width) == (orientation >= 5)
    with Image.open(tmp_path / "out/in/huge.jpg") as image:
        assert image.width == 900


def test_a_bar_below_is_as_long_as_the_probability_and_hides_nothing():
    image = drawing(400, 300)
    image = annotated(image.copy(), answer(0.75))
    assert np.array_equal(np.asarray(image)[:300], np.asarray(image))
    row = np.asarray(image)[302]
    assert (row[:300] == annotate._KNOWN).all()
    assert (row[300:] == annotate._GROUND).all()


def test_an_unknown_image_has_another_color():
    row = np.asarray(annotated(drawing(400, 300), answer(0.5, "unknown", None)))[302]
    assert (row[:200] == annotate._DOUBTED).all()


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (5, 90), (90, 5), (3000, 2000), (20_000, 40)])
def test_the_writing_fits_images_of_any_size(size):
    image = annotated(drawing(*size), answer(0.0))
    assert 240 <= image.width <= 16_384
    below = np.asarray(image)[-image.height // 5 :]
    assert (below == 255).all(axis=2).any()  # white is written there, and in no part of the image


@pytest.fixture
def fonts(tmp_path, monkeypatch):
    """A folder of system fonts, the only one."""
    annotate._font_with.cache_clear()
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_DIRS", str(tmp_path))
    (tmp_path / "fonts").mkdir()
    yield tmp_path / "fonts"
    annotate._font_with.cache_clear()


def test_letters_that_no_font_has_are_replaced(fonts):
    own = annotate._font(20)
    assert annotate._writable("café Ñandú 北\n", own) == ("cafe Nandu ??", own)
    assert annotate._writable("plain", own) == ("plain", own)


@pytest.mark.skipif(sys.platform != "linux", reason="where fonts are searched for is told to Pillow by XDG_DATA_HOME")
def test_a_label_is_written_with_a_font_of_the_system_that_has_its_letters(fonts):
    matplotlib = pytest.importorskip("matplotlib")
    shutil.copy(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf"), fonts)
    shown, font = annotate._writable("Журавль é\t", annotate._font(20))
    assert shown == "Журавль é?"
    assert (font.getname()[0], font.size) == ("DejaVu Sans", 20)
    assert annotate._writable("北", annotate._font(20))[0] == "?"
    image = annotated(drawing(400, 300), answer(0.5, "Журавль", 0))
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
def test_a_drawn_image_has_the_path_of_its_record_below_the_folder(name, path):
    assert target(name) == Path(path)


def test_a_name_too_long_for_a_temporary_one_is_shortened_and_stays_its_own():
    names = {str(target("x" * 240 + f"{number}.jpg")) for number in range(3)}
    assert len(names) == 3
    assert all(len(name) <= 200 and name.endswith(".jpg") for name in names)


def test_images_of_one_name_from_other_folders_do_not_replace_each_other(run, tmp_path, samples):
    for name in ("a/x.png", "b/x.png", "b/X.png", "b/x.tif.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(samples[0], tmp_path / name)
    with Image.open(samples[0]) as image:
        image.save(tmp_path / "b/x.tif")
    (tmp_path / "at").mkdir()
    named = ["../a/x.png", "../b/x.png", "../b/X.png", "../b/x.tif", "../b/x.tif.png", tmp_path / "b/x.png"]
    assert run(*named, "--annotate", "out", cwd=tmp_path / "at").code == 0
    inside = drawn(tmp_path / "at/out")
    assert len(inside) == 6
    assert {"_/a/x.png", "_/b/x.png", "_/b/X-2.png", "_/b/x.tif.png", "_/b/x.tif-2.png"} < set(inside)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "at", "b"]


def test_what_cannot_be_read_is_left_out(run, tmp_path, samples):
    (tmp_path / "bad.png").write_text("Dear Sir or Madam")
    shutil.copy(samples[0], tmp_path / "good.png")
    assert run("bad.png", "empty", "good.png", "--annotate", "out").code == 1
    assert drawn(tmp_path / "out") == ["good.png"]


def test_a_image_on_stdin_is_drawn_too(run, tmp_path, samples):
    assert run("-", "--annotate", "out", stdin=samples[0].read_bytes()).code == 0
    assert drawn(tmp_path / "out") == ["stdin.png"]


def test_only_a_folder_of_ones_own_is_written_to(run, tmp_path, samples):
    (tmp_path / "in").mkdir()
    photo = Path(shutil.copy(samples[0], tmp_path / "in/x.png"))
    before = photo.read_bytes()
    (tmp_path / "empty").mkdir()
    for folder, said in {
        ".": "it holds other files; name a new folder or an empty one",
        "in": "it holds other files",
        "in/x.png": "it is a file; name a folder",
        "in/out": "it lies in in, which is read; name a folder elsewhere",
    }.items():
        done = run("in", "-r", "--annotate", folder)
        assert done.code == 2
        assert said in done.error
    for _ in range(2):  # the second run replaces what the first one drew
        assert run("in", "-r", "--annotate", "empty").code == 0
    assert run("in", "--annotate", "in/out").code == 0
    assert run("in/out", "--annotate", "in/out").code == 2
    assert photo.read_bytes() == before
    assert drawn(tmp_path / "empty") == ["in/x.png"]


def test_a_link_does_not_lead_out_of_the_folder(run, tmp_path, samples):
    for name in ("in", "out", "elsewhere"):
        (tmp_path / name).mkdir()
    shutil.copy(samples[0], tmp_path / "in/x.png")
    (tmp_path / "out" / MARKER).touch()
    (tmp_path / "out/in").symlink_to(tmp_path / "elsewhere")
    done = run("in", "--annotate", "out")
    assert done.code == 4
    assert "a link leads out of out" in done.error
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_run_gone_on_with_draws_the_rest(run, tmp_path, samples):
    (tmp_path / "in").mkdir()
    for sample in samples:
        shutil.copy(sample, tmp_path / "in")
    code = (
        "import os, signal\n"
        "from clf_runtime import annotate, cli, output\n"
        "output.SECONDS_BETWEEN_POINTS = 0\n"
        "write, left = annotate.Annotations._write, iter([None] * 5)\n"
        "def cut(*arguments):\n"
        "    next(left, 9) == 9 and os.kill(os.getpid(), signal.SIGKILL)\n"
        "    write(*arguments)\n"
        "annotate.Annotations._write = cut\n"
        "cli.main()\n"
    )
    arguments = ["-m", samples[0].parent.parent / "model.onnx", "in", "-o", "answers", "--annotate", "out"]
    subprocess.run([sys.executable, "-c", code, *arguments], cwd=tmp_path)
    assert len(drawn(tmp_path / "out")) == 5
    kept = (tmp_path / "out/in" / samples[0].name).stat().st_mtime_ns
    done = run("in", "-o", "answers", "--annotate", "out", "--resume")
    assert "16 images (5 of them by the run before)" in done.err
    assert drawn(tmp_path / "out") == [f"in/{path.name}" for path in samples]
    assert (tmp_path / "out/in" / samples[0].name).stat().st_mtime_ns == kept


def test_a_image_that_is_gone_by_then_has_its_answer_all_the_same(tmp_path, model, samples):
    from clf_runtime import Classifier
    from clf_runtime.sources import ImageSource

    path = str(shutil.copy(samples[0], tmp_path))
    classifier = Classifier.load(model)
    annotations = annotate.Annotations(tmp_path / "out", classifier.spec.preprocess)
    results = list(classifier.predict_sources(annotations.noted([ImageSource(path, path)])))
    Path(path).unlink()
    assert list(annotations.drawn(results)) == results
    assert drawn(tmp_path / "out") == []
