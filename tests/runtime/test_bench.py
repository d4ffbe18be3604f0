"""`clf-bench` as a process: what it measures, of what, and what it says."""

from __future__ import annotations

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
from clf_runtime.bench.measure import STAGES, BenchResult, percentile
from clf_runtime.diagnostics import cpu

FIGURES = [
    *("cold_start_ms", "latency_p50_ms", "latency_p90_ms", "latency_p99_ms", "throughput"),
    *("cold_peak_bytes", "peak_bytes", "size_bytes"),
]
QUICK = ("--rounds", 1, "--seconds", 0)

MEASURED = BenchResult(
    model="a.onnx",
    images=1600,
    left_out=0,
    provider="CPUExecutionProvider",
    notice="",
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


def test_models_are_measured_side_by_side_with_the_images_that_are_named(command, model, samples, tmp_path):
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
    assert set(content) == {"date", "machine", "versions", "order", "result"}
    assert [each["model"] for each in content["result"]] == ["copy.onnx", str(model)]
    for each in content["result"]:
        assert all(each[figure] > 0 for figure in FIGURES)
        assert each["latency_p50_ms"] <= each["latency_p90_ms"] <= each["latency_p99_ms"]
        assert list(each["stages_ms"]) == list(STAGES)
        assert all(value > 0 for value in each["stages_ms"].values())
        assert (each["images"], each["unreadable"], each["provider"]) == (2, 1, "CPUExecutionProvider")
        assert each["size_bytes"] == model.stat().st_size
        assert each["latencies"] >= 20
    assert done.error == "clf-bench: bench.svg"
    root = xml.etree.ElementTree.parse(tmp_path / "bench.svg").getroot()
    assert root.tag.endswith("svg")


def test_without_images_the_models_own_are_taken_and_a_table_is_printed(command, home):
    done = command("clf-bench", "-m", "artifacts/model.onnx", *QUICK, "--plot", "bench.png", cwd=home)
    assert done.code == 0, done.err
    rows = {line[:24].strip(): line[24:].strip() for line in done.out.splitlines()[1:]}
    assert rows["images"] == "16"
    assert re.fullmatch(r"[\d.,]+ images/s", rows["throughput"])
    assert all(re.fullmatch(r"[\d.,]+ ms", rows[stage]) for stage in (*STAGES, "cold start", "latency p99"))
    assert all(re.fullmatch(r"[\d.,]+ MB", rows[what]) for what in ("peak memory, one image", "file"))
    with Image.open(home / "bench.png") as drawn:
        assert min(drawn.size) > 500
    (home / "bench.png").unlink()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("-m", "none.onnx"), 3, "none.onnx: no such model"),
        (("none.png",), 3, "none.png: no image can be read; name some, or none to take the model's own"),
        (("-",), 3, "no image can be read"),
        (("--device", "tpu"), 2, "--device tpu: unknown"),
        (("--plot", "x.pdf"), 2, "expected a name that ends in .png or .svg"),
        (("--plot", "none/x.png"), 2, "there is no folder none; make it first"),
    ],
)
def test_what_cannot_be_measured_ends_as_it_does_elsewhere(command, home, arguments, code, said):
    done = command("clf-bench", *arguments, *QUICK, cwd=home, stdin=b"")
    assert done.code == code
    assert said in done.error
    assert done.error.startswith("clf-bench: ")


def test_without_matplotlib_there_is_no_plot_and_that_is_said_before_anything_is_measured(tmp_path):
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


def test_every_onnx_file_of_the_folder_is_taken_by_default(artifacts, tmp_path):
    found = {path.name for path in cli._all_in(artifacts)}
    assert found == {path.name for path in artifacts.glob("*.onnx")}
    assert cli._all_in(tmp_path) == (tmp_path / "model.onnx",)


def test_a_process_that_crashes_is_a_bug():
    with pytest.raises(RuntimeError, match="a process ended with -11: Segmentation"):
        measure._raise_failed(-11, b"Segmentation fault\n")


def test_further_models_are_compared_with_the_first():
    other = replace(MEASURED, model="b.onnx", nodes=None, cold_peak_bytes=None, throughput=617.25, left_out=3)
    lines = report.table([MEASURED, other]).splitlines()
    cells = {line[:24].strip(): re.split(r"\s{2,}", line[24:].strip()) for line in lines}
    assert cells["throughput"] == ["1,234 images/s", "617 images/s (0.50 x)"]
    assert cells["latency p50"] == ["2.00 ms", "2.00 ms (1.00 x)"]
    assert cells["peak memory, one image"] == ["70.0 MB", "not told"]
    assert cells["nodes"][0] == "20 on CUDAExecutionProvider, 2 on CPUExecutionProvider"
    assert cells["nodes"][1] == "CPUExecutionProvider, nodes not told"
    assert cells["images"] == ["1,600", "1,600, 3 unreadable left out"]


def test_a_figure_that_is_not_told_is_not_drawn(tmp_path):
    plot.draw([replace(MEASURED, cold_peak_bytes=None)], tmp_path / "x.svg")
    assert (tmp_path / "x.svg").stat().st_size > 1000


def test_a_percentile_is_one_of_the_values():
    values = [float(value) for value in range(100, 0, -1)]
    assert [percentile(values, share) for share in (0.5, 0.9, 0.99, 1.0, 0.0)] == [50, 90, 99, 100, 1]
    assert percentile([7.0], 0.5) == 7
    assert percentile([1.0, 2.0], 0.9) == 2


def test_where_the_system_tells_no_memory_none_is_told(monkeypatch, model, samples):
    monkeypatch.setitem(sys.modules, "resource", None)
    assert worker._peak_bytes() is None
    monkeypatch.delattr(os, "wait4")
    order = measure.BenchOptions((model,), (), False, "cpu", 1, 8, 1, 0)
    taken, peak = measure._cold_start(order, model, str(samples[0]))
    assert taken > 0
    assert peak is None
    assert measure._median([None, None]) is None


def test_a_person_at_a_terminal_sees_how_far_it_is(monkeypatch, capsys):
    cli._noticed("round 1 of 5: model.onnx")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    cli._noticed("round 1 of 5: model.onnx")
    assert capsys.readouterr().err == "clf-bench: round 1 of 5: model.onnx\n"


def test_a_notice_is_told_once(model, tmp_path):
    code = (
        "from clf_runtime import bench, cli_bench\n"
        "from test_bench import MEASURED\n"
        "from dataclasses import replace\n"
        "bench.measure = lambda *_: [replace(MEASURED, notice='--device auto takes the CPU: why')] * 2\n"
        "cli_bench.main()\n"
    )
    surroundings = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=surroundings)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "clf-bench: --device auto takes the CPU: why\n"


def cpuinfo(folder: Path, text: str) -> Path:
    (folder / "cpuinfo").write_text(text)
    return folder


def test_the_processor_is_named_and_its_instruction_sets(tmp_path):
    intel = "processor: 0\nmodel name\t: Some CPU @ 2 GHz\nflags\t\t: fpu avx avx2 avx512f avx512_vnni amx_int8\n\n"
    assert cpu.name(cpuinfo(tmp_path, intel)) == "Some CPU @ 2 GHz"
    assert cpu.instruction_sets(tmp_path) == ["AVX", "AVX2", "AVX-512", "AVX-512 VNNI", "AMX INT8"]
    arm = "processor : 0\nFeatures : fp asimd asimddp\n\nModel : Raspberry Pi 5\n"
    assert cpu.name(cpuinfo(tmp_path, arm)) == "Raspberry Pi 5"
    assert cpu.instruction_sets(tmp_path) == ["NEON", "dot product"]
    assert cpu.instruction_sets(tmp_path / "none") is None
    assert cpu.name(tmp_path / "none")
