"""`clf-run --stream`: which frames are classified, what is printed, and how a stream ends."""

from __future__ import annotations

import functools
import io
import json
import os
import shutil
import signal
import socketserver
import subprocess
import sys
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer

import click
import numpy as np
import pytest
from conftest import BIN
from PIL import Image

from clf_runtime.classifier import Classifier
from clf_runtime.cli import command as clf_run
from clf_runtime.command import Duration
from clf_runtime.errors import DataError, ImageError
from clf_runtime.streams.frames import FrameSplitter
from clf_runtime.streams.labels import LabelOptions
from clf_runtime.streams.reader import EveryFrame, LatestFrame, read_descriptor, read_frames
from clf_runtime.streams.run import StreamOptions, StreamRun
from clf_runtime.streams.smoothing import HYSTERESIS, LabelSwitch, Smoother
from clf_runtime.streams.statistics import Latencies

KEYS = ["frame", "time", "label", "index", "score", "top", "provider", "dropped", "damaged"]
CORES = 2


@pytest.fixture(scope="module")
def jpegs(samples):
    """The samples of the model, as JPEG files."""

    def to_jpeg(path):
        file = io.BytesIO()
        Image.open(path).convert("L").save(file, "JPEG", quality=100, subsampling=0)
        return file.getvalue()

    return [to_jpeg(path) for path in samples]


@pytest.fixture(scope="module")
def options(model):
    """The options of clf-run, without one of its own."""
    return StreamOptions(model, "cpu", CORES, 512_000_000, True, LabelOptions(1, 0.0, 0.0, False))


class Camera:
    """Both ends of a run: its reader gets pieces when the test writes them, and its records wait in a queue."""

    def __init__(self, options):
        self.records, self.messages = [], []
        self._changed = threading.Condition()
        reading, self._writing = os.pipe()
        self.run = StreamRun(options, self._add, self.messages.append)
        self._error = None
        self._thread = threading.Thread(target=self._execute, args=(reading,))
        self._thread.start()

    def _execute(self, reading):
        try:
            self.run.execute(read_descriptor(reading))
        except (DataError, ValueError) as error:
            self._error = error
        finally:
            os.close(reading)

    def _add(self, text):
        with self._changed:
            self.records.append(json.loads(text))
            self._changed.notify_all()

    def write(self, content):
        while content:
            content = content[os.write(self._writing, content) :]

    def wait_for(self, count):
        """Wait for so many records."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.records) >= count, timeout=60)
        return self.records[-1]

    def wait_for_end(self):
        """Wait until the run ends by itself."""
        self._thread.join(timeout=60)
        assert not self._thread.is_alive()

    def end(self):
        """Close the stream, and return the statistics of the run."""
        os.close(self._writing)
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self.run.statistics


def test_frames_get_the_labels_of_the_same_files(options, jpegs, model):
    camera = Camera(replace(options, keeps_latest=False, labels=LabelOptions(3, 0.0, 0.0, False)))
    camera.write(b"".join(jpegs))
    statistics = camera.end()
    expected = Classifier.load(model).predict_batch(jpegs, top=3)
    assert [list(record) for record in camera.records] == [KEYS] * len(jpegs)
    assert [record["frame"] for record in camera.records] == list(range(1, len(jpegs) + 1))
    assert [record["label"] for record in camera.records] == [prediction.label for prediction in expected]
    assert [row["label"] for row in camera.records[0]["top"]] == [score.label for score in expected[0].top]
    assert (statistics.frames, statistics.dropped, statistics.damaged) == (len(jpegs), 0, 0)
    assert 0 < statistics.latencies.percentile(50) <= statistics.latencies.percentile(95)


@pytest.mark.parametrize("keeps_latest", [True, False])
def test_a_slow_camera_gets_each_result_before_its_next_frame(options, jpegs, keeps_latest):
    camera = Camera(replace(options, keeps_latest=keeps_latest))
    for number, jpeg in enumerate(jpegs, 1):
        camera.write(jpeg)
        assert camera.wait_for(number)["frame"] == number
    assert camera.end().dropped == 0


def test_the_newest_frames_of_a_fast_camera_are_classified_and_the_others_counted(options, jpegs):
    camera = Camera(options)
    for _ in range(40):
        camera.write(b"".join(jpegs))
    statistics = camera.end()
    numbers = [record["frame"] for record in camera.records]
    assert numbers == sorted(set(numbers))
    assert numbers[-1] == 40 * len(jpegs)  # the newest frame is never dropped
    assert statistics.frames + statistics.dropped == 40 * len(jpegs)
    assert statistics.dropped > 0
    # Every frame before this one was classified or is counted as dropped.
    assert all(record["dropped"] == record["frame"] - place for place, record in enumerate(camera.records, 1))


def test_with_every_a_fast_camera_waits_and_no_frame_is_lost(options, jpegs):
    run, read, ahead = None, 0, []

    def write(text):
        ahead.append(read - json.loads(text)["frame"])

    def next_piece():
        nonlocal read
        read += 1
        return jpegs[read % len(jpegs)] if read <= 300 else b""

    run = StreamRun(replace(options, keeps_latest=False), write, print)
    run.execute(next_piece)
    assert (run.statistics.frames, run.statistics.dropped) == (300, 0)
    assert max(ahead) <= 2 * CORES  # one that runs and one that waits for an earlier one, for each core


@pytest.mark.parametrize("keeps_latest", [True, False])
def test_a_camera_that_stalls_within_a_frame_gets_no_result_for_it_until_it_continues(options, jpegs, keeps_latest):
    camera = Camera(replace(options, keeps_latest=keeps_latest))
    camera.write(jpegs[0] + jpegs[1][:100])
    camera.wait_for(1)
    camera.write(jpegs[1][100:-1])
    assert len(camera.records) == 1
    camera.write(jpegs[1][-1:])
    assert camera.wait_for(2)["frame"] == 2
    assert camera.end().frames == 2


def test_damaged_frames_are_records_in_their_place_and_counted(options, jpegs):
    blank = jpegs[1].replace(b"\xff\xc0", b"\xff\xc3")  # lossless JPEG, which Pillow does not decode
    camera = Camera(replace(options, keeps_latest=False))
    camera.write(jpegs[0] + blank + jpegs[2][:-9] + jpegs[3] + jpegs[4] + jpegs[5][:-9])
    statistics = camera.end()
    found = [(record["frame"], record.get("error", {}).get("kind"), record["damaged"]) for record in camera.records]
    assert found == [(1, None, 0), (2, "damaged", 1), (3, "damaged", 2), (4, None, 2), (5, None, 2), (6, "damaged", 3)]
    assert list(camera.records[1]) == ["frame", "time", "error", "dropped", "damaged"]
    assert (statistics.frames, statistics.damaged) == (3, 3)


def test_a_damaged_frame_never_replaces_a_good_one_that_waits():
    frames = LatestFrame()
    for content in (b"1", ImageError("damaged", "2"), b"3", ImageError("damaged", "4"), ImageError("damaged", "5")):
        frames.put(content, 0.0)
    first, second = frames.take(), frames.take()
    assert (first.number, first.content, first.dropped, first.damaged) == (3, b"3", 1, 1)
    assert (second.number, str(second.content), second.damaged) == (5, "5", 3)


@pytest.mark.parametrize("source", [EveryFrame, LatestFrame])
def test_a_frame_that_arrives_after_the_end_does_not_count(source, jpegs):
    frames, is_closed = source(), threading.Event()

    def read():
        is_closed.wait()
        yield jpegs[0]

    pieces = read()
    frames.begin(read_frames(lambda: next(pieces), FrameSplitter()))
    frames.close()
    is_closed.set()
    assert frames.take() is None
    assert (frames.dropped, frames.damaged) == (0, 0)


def test_a_device_that_fails_ends_the_stream_while_another_thread_waits_for_the_camera(options, jpegs):
    camera = Camera(replace(options, keeps_latest=False))
    camera.run._classifier.close()
    camera.write(jpegs[0])
    camera.wait_for_end()
    with pytest.raises(ValueError, match="closed"):
        camera.end()


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        (b"", "stdin: empty, expected frames; see what the program before clf-run printed"),
        (b"\0\0\0 ftypisom" * 3, r"stdin: no frame; it starts with b'.*ftypis.*', expected JPEG or PNG images .*"),
        (b"\0" * 17_000_000, r"stdin: no frame in the first 16,[\d,]+ bytes; it starts with b'.*'.*"),
    ],
    ids=["empty", "video", "endless"],
)
def test_a_stream_without_frames_is_an_error(options, stream, message):
    pieces = iter([stream[start : start + 65536] for start in range(0, len(stream), 65536)])
    with pytest.raises(DataError, match=message):
        StreamRun(options, print, print).execute(lambda: next(pieces, b""))


def test_a_first_frame_of_more_than_16_megabytes_is_no_error():
    jpeg = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(jpeg, "JPEG")
    content = jpeg.getvalue()
    comment = b"\xff\xfe\xff\xff" + b" " * 65533
    large = content[:2] + comment * 260 + content[2:]
    pieces = iter([large[:16_500_000], large[16_500_000:], b""])
    assert [frame for frame, _ in read_frames(lambda: next(pieces), FrameSplitter())] == [large]


@pytest.mark.parametrize("keeps_latest", [True, False])
def test_a_stream_that_cannot_be_read_ends_with_that_error_after_its_frames(options, jpegs, keeps_latest):
    def read():
        yield jpegs[0]
        raise OSError(5, "Input/output error")

    pieces, records = read(), []
    run = StreamRun(replace(options, keeps_latest=keeps_latest), records.append, print)
    with pytest.raises(OSError, match="Input/output error"):
        run.execute(lambda: next(pieces))
    assert len(records) == run.statistics.frames == 1


def test_a_device_that_fails_ends_the_stream(options, jpegs):
    run = StreamRun(options, print, print)
    run._classifier.close()
    with pytest.raises(ValueError, match="closed"):
        run.execute(functools.partial(next, iter([jpegs[0], b""])))


def test_a_gpu_that_does_not_work_is_reported(options, monkeypatch):
    messages = []
    monkeypatch.setattr(Classifier, "warning", "CUDA does not work here")
    StreamRun(options, print, messages.append)
    assert messages == ["CUDA does not work here"]


def one_hot(index, classes=3):
    return np.eye(classes, dtype=np.float32)[index]


@pytest.mark.parametrize("interval_s", [0.002, 0.01, 0.04])
def test_the_label_changes_after_the_same_time_at_any_frame_rate(interval_s):
    smoother, switch = Smoother(0.5), LabelSwitch(0.0)
    assert switch.update(smoother.add(one_hot(0), 0.0)) == 0
    changed = next(
        number * interval_s
        for number in range(1, 1000)
        if switch.update(smoother.add(one_hot(1), number * interval_s)) == 1
    )
    expected = 0.5 * np.log(2 / (1 - HYSTERESIS))
    assert expected <= changed <= expected + interval_s + 1e-6


def test_smoothing_weighs_frames_by_the_time_since_the_one_before():
    smoother = Smoother(1.0)
    smoother.add(one_hot(0), 10.0)
    assert smoother.add(one_hot(1), 10.0) == pytest.approx(one_hot(0))  # no time has passed
    assert smoother.add(one_hot(1), 11.0) == pytest.approx([np.exp(-1), 1 - np.exp(-1), 0])
    assert smoother.add(one_hot(2), 1000.0) == pytest.approx(one_hot(2))
    smoother.add(np.full(3, np.nan, np.float32), 1001.0)
    assert smoother.add(one_hot(1), 1002.0) == pytest.approx(one_hot(1))  # not NaN forever
    assert Smoother(0.0).add(one_hot(1), 0.0) == pytest.approx(one_hot(1))


def test_a_label_changes_only_if_another_is_clearly_better():
    switch = LabelSwitch(0.5)
    scores = [(0.45, 0.4), (0.51, 0.49), (0.45, 0.54), (0.44, 0.56), (0.56, 0.44), (0.3, 0.35), (0.6, 0.39)]
    assert [switch.update(np.array(row, np.float32)) for row in scores] == [None, 0, 0, 1, 0, None, 0]


def test_on_change_prints_only_changes_of_the_smoothed_label(options, jpegs):
    first, second = jpegs[0], jpegs[-1]
    camera = Camera(replace(options, keeps_latest=False, labels=LabelOptions(2, 0.0, 0.0, True)))
    camera.write(first * 5 + b"\xff\xd8\xff" + second * 5 + first[:-9] + first * 5)
    statistics = camera.end()
    assert [record["frame"] for record in camera.records] == [1, 7, 13]
    assert camera.records[0]["label"] == camera.records[2]["label"] != camera.records[1]["label"]
    assert (statistics.frames, statistics.damaged) == (15, 2)
    assert camera.messages == ["frame 6: damaged: the JPEG breaks off after 3 bytes (1 damaged so far)"]


def test_smoothed_labels_below_the_threshold_are_unknown(options, jpegs):
    for only_changes, count in ((False, 3), (True, 1)):
        labels = LabelOptions(1, 1.0, 0.5, only_changes)
        camera = Camera(replace(options, keeps_latest=False, labels=labels))
        camera.write(jpegs[0] * 3)
        camera.end()
        assert [(record["label"], record["index"]) for record in camera.records] == [("unknown", None)] * count


def test_percentiles_are_at_most_two_percent_too_large():
    latencies, values = Latencies(), np.random.default_rng(0).lognormal(-4, 1, 1000)
    assert latencies.percentile(50) == 0
    for value in values:
        latencies.add(value)
    for percent in (1, 50, 95, 100):
        exact = np.percentile(values, percent, method="inverted_cdf")
        assert exact <= latencies.percentile(percent) * (1 + 1e-9) <= exact * 1.0201


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stream", "img.jpg"], "an IMAGE cannot be used with --stream"),
        (["--stream", "--output", "x"], "--output cannot be used with --stream"),
        (["--stream", "--server", "http://a"], "--server cannot be used with --stream"),
        (["--stream", "--resume"], "--resume cannot be used with --stream"),
        (["--stream", "-r"], "--recursive cannot be used with --stream"),
        (["--stream", "--format", "csv"], "--stream prints jsonl, not csv"),
        (["--stream", "--smooth", "3"], "'3' is not a time"),
        (["--every"], "need --stream"),
        (["--on-change", "img.jpg"], "need --stream"),
        (["--smooth", "1s", "img.jpg"], "need --stream"),
    ],
)
def test_options_that_contradict_each_other_are_usage_errors(arguments, message):
    with pytest.raises(click.UsageError, match=message):
        clf_run.main(arguments, standalone_mode=False)


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="no terminals of this kind")
def test_a_terminal_is_no_stream(monkeypatch):
    monkeypatch.setattr(sys, "stdin", os.fdopen(os.openpty()[1], "rb"))
    with pytest.raises(click.UsageError, match="stdin, which is a terminal"), sys.stdin:
        clf_run.main(["--stream"], standalone_mode=False)


@pytest.mark.parametrize(("text", "seconds"), [("500ms", 0.5), ("1.5s", 1.5), ("2min", 120.0)])
def test_a_time_has_a_unit(text, seconds):
    assert Duration().convert(text, None, None) == seconds


SUMMARY = r"latency [\d.]+ ms \(p50\), [\d.]+ ms \(p95\), on CPUExecutionProvider"


def test_the_command_prints_records_and_a_summary(command, home, jpegs):
    arguments = ("--stream", "--every", "--format", "jsonl", "--on-change", "--smooth", "0ms")
    done = command("clf-run", *arguments, cwd=home, stdin=b"".join(jpegs))
    assert done.code == 0
    assert len(done.out.splitlines()) == len({json.loads(line)["frame"] for line in done.out.splitlines()}) > 1
    assert done.error.startswith(f"clf-run: {len(jpegs)} frames, 0 dropped, 0 damaged, ")
    cut = command("clf-run", "--stream", cwd=home, stdin=jpegs[0] + jpegs[1][:-5])
    assert cut.code == 1
    assert cut.error.startswith("clf-run: 1 frame, 0 dropped, 1 damaged, ")
    empty = command("clf-run", "--stream", cwd=home, stdin=b"")
    assert empty.code == 3
    assert empty.err.splitlines()[0] == "clf-run: 0 frames, 0 dropped, 0 damaged, on CPUExecutionProvider"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_a_stream_that_stalls_with_a_summary(home, jpegs, number, code):
    process = subprocess.Popen(
        [BIN / "clf-run", "--stream"],
        cwd=home,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=False,
    )
    process.stdin.write(jpegs[0] + jpegs[1][:100])
    process.stdin.flush()
    assert json.loads(process.stdout.readline())["frame"] == 1
    process.send_signal(number)
    process.wait(timeout=60)  # while the camera still has the pipe open
    _, err = process.communicate()
    assert process.returncode == code
    assert err.decode().startswith("clf-run: 1 frame, 0 dropped, 0 damaged, ")


def test_a_closed_output_ends_the_stream(home, jpegs):
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [BIN / "clf-run", "--stream"], cwd=home, input=jpegs[0], stdout=writing, stderr=subprocess.PIPE, timeout=60
    )
    os.close(writing)
    assert done.returncode == 0
    assert done.stderr.startswith(b"clf-run: 1 frame, ")


class _Streaming(BaseHTTPRequestHandler):
    """A camera that answers with a multipart stream."""

    frames: list[bytes]

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        for frame in self.frames:
            head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(frame)}\r\n\r\n".encode()
            self.wfile.write(head + frame + b"\r\n")

    def log_message(self, *_):
        pass


def run_shell(line, cwd):
    """Run a command line of docs/streams.md."""
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
    done = subprocess.run(["sh", "-c", line], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return [json.loads(text) for text in done.stdout.splitlines()], done.stderr


def needs(program):
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"{program} is not installed; see CONTRIBUTING.md")


@needs("curl")
def test_an_ip_camera_through_curl(home, jpegs):
    class Server(socketserver.ThreadingMixIn, HTTPServer):
        daemon_threads = True

    server = Server(("127.0.0.1", 0), type("Camera", (_Streaming,), {"frames": jpegs}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/video.mjpg"
    for include in ("", "-i "):
        records, _ = run_shell(f"curl -sN {include}{url} | clf-run --stream --every", home)
        assert [record["frame"] for record in records] == list(range(1, len(jpegs) + 1))
        assert not any("error" in record for record in records)
    server.shutdown()
    server.server_close()


@needs("ffmpeg")
@pytest.mark.parametrize("output", ["-f mjpeg", "-f image2pipe -c:v png", "-f mpjpeg"])
def test_a_video_file_through_ffmpeg(home, tmp_path, output):
    video = tmp_path / "video.mkv"
    source = "testsrc2=size=320x240:rate=10"
    subprocess.run(["ffmpeg", "-v", "error", "-f", "lavfi", "-i", source, "-t", "2", video], check=True)
    records, _ = run_shell(f"ffmpeg -v error -i {video} {output} - | clf-run --stream --every", home)
    assert [record["frame"] for record in records] == list(range(1, 21))
    assert all("label" in record for record in records)


@needs("gst-launch-1.0")
def test_a_camera_through_gstreamer(home):
    source = "videotestsrc num-buffers=20 ! video/x-raw,width=320,height=240"
    records, _ = run_shell(f"gst-launch-1.0 -q {source} ! jpegenc ! fdsink | clf-run --stream --every", home)
    assert [record["frame"] for record in records] == list(range(1, 21))
    assert all("label" in record for record in records)
