"""`clf-bench` as a process: what it measures, with which images, and what it prints."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from clf_runtime.bench import cli, measure, plot, report, worker
from clf_runtime.bench.measure import STAGES, BenchOptions, BenchResult, ProcessError, percentile
from clf_runtime.diagnostics import cpu

FIGURES = [
    *("cold_start_ms", "latency_p50_ms", "latency_p90_ms", "latency_p99_ms", "throughput"),
    *("cold_peak_bytes", "peak_bytes", "size_bytes"),
]
HAS_PEAKS = importlib.util.find_spec("resource") is not None  # without it, peaks of memory are unknown
QUICK = ("--rounds", 1, "--seconds", 0)

RESULT = BenchResult(
    model="a.onnx",
    images=1600,
    unreadable=0,
    provider="CPUExecutionProvider",
    warning="",
    nodes={"CUDAExecutionProvider": 20, "CPUExecutionProvider": 2},
    size_bytes=2_000_000,
    cold_start_ms=300.0,
    cold_peak_bytes=70_000_000,
    latency_p50_ms=2.0,
    latency_p90_ms=3.0,
    latency_p99_ms=40.0,
    latencies=100,
    throughput=1234.5,
    peak_bytes=90_000_000,
    stages_ms={"read": 0.1, "decode": 1.0, "resize": 0.4, "inference": 0.5},
)


def test_models_are_measured_side_by_side_with_the_given_images(command, model, samples, tmp_path):
    shutil.copy(model, tmp_path / "copy.onnx")
    (tmp_path / "in/deep").mkdir(parents=True)
    shutil.copy(samples[0], tmp_path / "in")
    shutil.copy(samples[1], tmp_path / "in/deep")
    (tmp_path / "in/bad.png").write_text("Dear Sir or Madam")
    models = ("-m", "copy.onnx", "-m", model)
    options = ("in", "-r", "--threads", 1, "--format", "json", "--plot", "bench.svg")
    done = command("clf-bench", *models, *options, *QUICK)
    assert done.code == 0, done.err
    content = json.loads(done.out)
    assert set(content) == {"date", "machine", "versions", "options", "result"}
    assert [result["model"] for result in content["result"]] == ["copy.onnx", str(model)]
    for result in content["result"]:
        assert all(result[figure] > 0 for figure in FIGURES if HAS_PEAKS or "peak" not in figure)
        assert result["latency_p50_ms"] <= result["latency_p90_ms"] <= result["latency_p99_ms"]
        assert list(result["stages_ms"]) == list(STAGES)
        assert all(value > 0 for value in result["stages_ms"].values())
        assert (result["images"], result["unreadable"], result["provider"]) == (2, 1, "CPUExecutionProvider")
        assert result["size_bytes"] == model.stat().st_size
        assert result["latencies"] >= 20
    assert done.error == "clf-bench: wrote bench.svg"
    root = xml.etree.ElementTree.parse(tmp_path / "bench.svg").getroot()
    assert root.tag.endswith("svg")


def test_without_images_those_of_the_self_test_are_used_and_a_table_is_printed(command, model, tmp_path):
    done = command("clf-bench", "-m", model, *QUICK, "--plot", "bench.png")
    assert done.code == 0, done.err
    rows = {line[:24].strip(): line[24:].strip() for line in done.out.splitlines()[1:]}
    assert rows["images"] == "16"
    assert re.fullmatch(r"[\d.,]+ images/s", rows["throughput"])
    assert all(re.fullmatch(r"[\d.,]+ ms", rows[stage]) for stage in (*STAGES, "cold start", "latency p99"))
    assert re.fullmatch(r"[\d.,]+ MB", rows["file"])
    assert not HAS_PEAKS or re.fullmatch(r"[\d.,]+ MB", rows["peak memory, one image"])
    with Image.open(tmp_path / "bench.png") as drawn:
        assert min(drawn.size) > 500


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("-m", "none.onnx"), 3, "none.onnx: model not found"),
        (("none.png",), 3, "none.png: no image can be read; name other images, or none to use the model's own"),
        (("-",), 3, "no image can be read"),
        (("--device", "tpu"), 2, "--device tpu: unknown device"),
        (("--plot", "x.pdf"), 2, "expected a name that ends in .png or .svg"),
        (("--plot", "none/x.png"), 2, "folder none does not exist; create it first"),
    ],
)
def test_an_error_is_one_line_with_the_exit_code_of_clf_run(command, home, arguments, code, message):
    done = command("clf-bench", *arguments, *QUICK, cwd=home, stdin=b"")
    assert done.code == code
    assert message in done.error
    assert done.error.startswith("clf-bench: ")


def test_a_plot_without_matplotlib_is_an_error_before_anything_is_measured(tmp_path):
    hidden = (
        "import sys, importlib.util as util; find = util.find_spec; "
        "util.find_spec = lambda name, *rest: None if name == 'matplotlib' else find(name, *rest); "
        "from clf_runtime.bench.cli import main; main()"
    )
    arguments = [sys.executable, "-c", hidden, "--plot", "x.png"]
    done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 4
    assert (
        done.stderr == "clf-bench: --plot: matplotlib is not installed; pip install matplotlib, or leave out --plot\n"
    )


def test_all_onnx_files_of_the_folder_are_measured_by_default(artifacts, tmp_path):
    found = {path.name for path in cli.find_onnx_files(artifacts)}
    assert found == {path.name for path in artifacts.glob("*.onnx")}
    assert cli.find_onnx_files(tmp_path) == (tmp_path / "model.onnx",)


def test_a_process_that_crashes_is_a_bug():
    with pytest.raises(RuntimeError, match="a process ended with exit code -11: Segmentation"):
        measure._check_exit_code(-11, b"Segmentation fault\n")


def test_a_process_that_ends_with_an_error_determines_the_exit_code():
    with pytest.raises(ProcessError, match=r"^bad\.onnx: damaged$") as error:
        measure._check_exit_code(3, b"a line before\nclf-run: bad.onnx: damaged\n")
    assert error.value.exit_code == 3


def test_further_models_are_compared_with_the_first():
    other = replace(RESULT, model="b.onnx", nodes=None, cold_peak_bytes=None, throughput=617.25, unreadable=3)
    lines = report.table([RESULT, other]).splitlines()
    cells = {line[:24].strip(): re.split(r"\s{2,}", line[24:].strip()) for line in lines}
    assert cells["throughput"] == ["1,234 images/s", "617 images/s (0.50 x)"]
    assert cells["latency p50"] == ["2.00 ms", "2.00 ms (1.00 x)"]
    assert cells["peak memory, one image"] == ["70.0 MB", "unknown"]
    assert cells["nodes"][0] == "20 on CUDAExecutionProvider, 2 on CPUExecutionProvider"
    assert cells["nodes"][1] == "CPUExecutionProvider, nodes unknown"
    assert cells["images"] == ["1,600", "1,600, without 3 unreadable"]


def test_an_unknown_figure_is_not_drawn(tmp_path):
    plot.draw([replace(RESULT, cold_peak_bytes=None)], tmp_path / "x.svg")
    assert (tmp_path / "x.svg").stat().st_size > 1000


def test_a_long_path_leaves_room_for_the_bars(tmp_path):
    # matplotlib warns if it does not, and a warning is an error here.
    plot.draw([replace(RESULT, model=f"{'/folder' * 40}/model.onnx")], tmp_path / "x.svg")
    assert (tmp_path / "x.svg").stat().st_size > 1000


def test_a_percentile_is_one_of_the_values():
    values = [float(value) for value in range(100, 0, -1)]
    assert [percentile(values, fraction) for fraction in (0.5, 0.9, 0.99, 1.0, 0.0)] == [50, 90, 99, 100, 1]
    assert percentile([7.0], 0.5) == 7
    assert percentile([1.0, 2.0], 0.9) == 2


def test_peak_memory_is_unknown_if_the_system_does_not_report_it(monkeypatch, model, samples):
    monkeypatch.setitem(sys.modules, "resource", None)
    assert worker._peak_bytes() is None
    monkeypatch.delattr(os, "wait4", raising=False)
    options = BenchOptions((model,), (), False, "cpu", 1, 8, 1, 0)
    cold = measure._run_cold(options, model, str(samples[0]))
    assert cold.duration_ms > 0
    assert cold.peak_bytes is None
    assert measure._median([None, None]) is None


def test_progress_is_shown_on_a_terminal_only(monkeypatch, capsys):
    cli._show_progress("round 1 of 5: model.onnx")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    cli._show_progress("round 1 of 5: model.onnx")
    assert capsys.readouterr().err == "clf-bench: round 1 of 5: model.onnx\n"


def test_a_warning_is_printed_once_for_all_models(model, tmp_path):
    code = (
        "from clf_runtime.bench import cli, measure\n"
        "from test_bench import RESULT\n"
        "from dataclasses import replace\n"
        "measure.measure = lambda *_: [replace(RESULT, warning='--device auto uses the CPU: why')] * 2\n"
        "cli.main()\n"
    )
    surroundings = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=surroundings)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "clf-bench: --device auto uses the CPU: why\n"


def cpuinfo(folder: Path, text: str) -> Path:
    (folder / "cpuinfo").write_text(text)
    return folder


def test_the_processor_is_named_with_its_instruction_sets(tmp_path):
    intel = "processor: 0\nmodel name\t: Some CPU @ 2 GHz\nflags\t\t: fpu avx avx2 avx512f avx512_vnni amx_int8\n\n"
    assert cpu.name(cpuinfo(tmp_path, intel)) == "Some CPU @ 2 GHz"
    assert cpu.instruction_sets(tmp_path) == ["AVX", "AVX2", "AVX-512", "AVX-512 VNNI", "AMX INT8"]
    arm = "processor : 0\nFeatures : fp asimd asimddp\n\nModel : Raspberry Pi 5\n"
    assert cpu.name(cpuinfo(tmp_path, arm)) == "Raspberry Pi 5"
    assert cpu.instruction_sets(tmp_path) == ["NEON", "dot product"]
    assert cpu.instruction_sets(tmp_path / "none") is None
    assert cpu.name(tmp_path / "none")
