"""Requests per second and latency of clf-serve, beside the processor's limit and beside others with the same file.

usage: serving.py [--seconds N] [--rounds N] [--litserve PYTHON] [--bentoml PYTHON] [--processes N] [--data DIR]
                  [--soak MINUTES] [--name NAME]

An environment for one of the others is made with one command:
uv venv ENV && uv pip install --python ENV bentoml onnxruntime numpy pillow    (or litserve), and named ENV/bin/python.

wrk (apt-get install wrk) sends photos to MobileNetV3-small and MNIST's PNG files to small-resnet, over 1, 8 and 64
connections, and then at 70 % of the highest rate. The limit is that of throughput.py: cores / (processor seconds per
image for decoding, resizing and inference in batches of 8); wrk runs on the same cores. All services run in turn.
`cpu_us` is the processor time of the service and of wrk per request. An application in uvicorn that only answers runs,
too: `reachable` is the share of the limit that is left if each image also costs as much as one of its requests.
--soak keeps the load of 70 % up for so many minutes, and fails if memory grows by 1 MB or more, or if a request fails.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import hashlib
import http.client
import itertools
import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from measure import save_result
from throughput import BIN, CORES, HERE, PHOTOS, load_classifier, measure_limit, mnist

from clf_runtime.diagnostics.selftest import Case, SelfTest
from clf_runtime.onnx_file import FOOTER_BYTES, SELFTEST_KEY, footer, metadata_entry
from clf_runtime.preprocess import pixels_from_image

CONNECTIONS = (1, 8, 64)
LOAD = 0.7
LOAD_CONNECTIONS = 32
PORT = 8765
MOST_GROWTH_MB = 1.0
EMPTY = "an empty application in uvicorn"

_SCRIPT = """
local bodies, next_body, mean_ms = {}, 0, tonumber(os.getenv("MEAN_DELAY_MS"))
for name in io.lines(os.getenv("BODIES")) do
  local file = io.open(name, "rb")
  local headers = {["Content-Type"] = os.getenv("CONTENT_TYPE"), ["Host"] = "127.0.0.1"}
  bodies[#bodies + 1] = wrk.format("POST", os.getenv("TARGET"), headers, file:read("*a"))
  file:close()
end
function request()
  next_body = next_body % #bodies + 1
  return bodies[next_body]
end
if mean_ms > 0 then
  function delay() return math.floor(0.5 - mean_ms * math.log(1 - math.random())) end
end
function done(summary, latency)
  local e = summary.errors
  local form = '\\n{"requests": %d, "seconds": %f, "p50_ms": %f, "p99_ms": %f, "errors": %d}\\n'
  io.write(string.format(form, summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3,
    latency:percentile(99) / 1e3, e.connect + e.read + e.write + e.status + e.timeout))
end
"""


@dataclass(frozen=True)
class Workload:
    """A model with a self-test, and the files that wrk sends."""

    name: str
    model: Path
    images: list[str]
    folder: Path


@dataclass(frozen=True)
class Service:
    """How to start a service, and how its requests look."""

    name: str
    command: list[str]
    target: str
    ready: str
    form: str = ""  # JSON around an image in base64; empty if the body is the image itself

    @property
    def content_type(self) -> str:
        """The type of the bodies."""
        return "application/json" if self.form else "image/jpeg"

    def write_bodies(self, load: Workload) -> Path:
        """Write a list of the files that contain the bodies, and return its path."""
        names = load.images
        if self.form:
            names = []
            for number, image in enumerate(load.images):
                path = load.folder / f"{self.name}-{number}.json"
                path.write_text(self.form % base64.b64encode(Path(image).read_bytes()).decode())
                names.append(str(path))
        listed = load.folder / f"{self.name}.txt"
        listed.write_text("\n".join(names) + "\n")
        return listed


def with_self_test(model: Path, image: str, folder: Path) -> Path:
    """Copy a model and add the self-test that clf-serve asks for; the models of models.py have none."""
    classifier = load_classifier(model)
    pixels = pixels_from_image(image, classifier.spec.preprocess)
    logits = tuple(classifier.run(pixels[None])[0][0].tolist())
    test = SelfTest(1e-2, (Case("image", Path(image).read_bytes(), logits),)).to_json()
    content = model.read_bytes()
    content = content[:-FOOTER_BYTES] + metadata_entry(SELFTEST_KEY, test)
    path = folder / model.name
    path.write_bytes(content + footer(hashlib.sha256(content).hexdigest()))
    return path


@contextlib.contextmanager
def running(service: Service) -> Iterator[tuple[int, float]]:
    """Start a service; yield its process id and the seconds from exec until it was ready."""
    started = time.perf_counter()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(service.command, stdout=subprocess.DEVNULL, stderr=log, start_new_session=True)
        try:
            while not _is_ready(service.ready):
                if process.poll() is not None or time.perf_counter() - started > 60:
                    log.seek(0)
                    raise RuntimeError(f"{service.command}: {log.read().decode()}")
                time.sleep(0.005)
            yield process.pid, time.perf_counter() - started
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # LitServe leaves processes behind
            process.wait()


def _is_ready(path: str) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=5)
    with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
        connection.request("GET", path)
        return connection.getresponse().status == 200
    return False


def run_wrk(
    service: Service,
    bodies: Path,
    connections: int,
    seconds: float,
    mean_delay_ms: float = 0,
    process: int | None = None,
) -> dict[str, float]:
    """Send requests for some seconds; with the service's process, also measure what they cost.

    Raises:
        RuntimeError: wrk fails.
    """
    script = bodies.with_suffix(".lua")
    script.write_text(_SCRIPT)
    variables = {"BODIES": str(bodies), "TARGET": service.target, "CONTENT_TYPE": service.content_type}
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds:.0f}s", "--timeout", "30s", "-s", str(script)]
    busy_s = processor_s(process) if process else 0.0
    done = subprocess.run(
        [*command, f"http://127.0.0.1:{PORT}"],
        capture_output=True,
        text=True,
        env=os.environ | variables | {"MEAN_DELAY_MS": str(mean_delay_ms)},
    )
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)
    result: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    print(f"{service.name}, {connections} connections: {result}", file=sys.stderr)
    if process:
        result["cpu_us"] = (processor_s(process) - busy_s) / result["requests"] * 1e6
    return result | {"per_second": result["requests"] / result["seconds"]}


def memory_mb(process: int, kind: str = "Pss") -> float:
    """Return the memory of a process and all that it has started: proportional, or another line of smaps_rollup."""
    total = 0.0
    for member in [process, *_descendants(process)]:
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{member}/smaps_rollup").read_text().splitlines()
            total += next(int(line.split()[1]) for line in lines if line.startswith(f"{kind}:")) / 1024
    return round(total, 1)


def processor_s(process: int) -> float:
    """Return the processor time of a process, of all that it has started, and of what this process has waited for."""
    own = resource.getrusage(resource.RUSAGE_CHILDREN)
    total = own.ru_utime + own.ru_stime
    for member in [process, *_descendants(process)]:
        with contextlib.suppress(OSError):
            ticks = Path(f"/proc/{member}/stat").read_text().rpartition(")")[2].split()[11:13]
            total += sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")
    return total


def _descendants(process: int) -> list[int]:
    found = []
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{process}/task").iterdir():
            for child in (thread / "children").read_text().split():
                found += [int(child), *_descendants(int(child))]
    return found


def measure(load: Workload, services: Sequence[Service], seconds: float, rounds: int) -> list[dict[str, object]]:
    """Measure limit, a service, limit, the next one, …; return a row for each service and number of connections."""
    classifier = load_classifier(load.model)
    limits = [measure_limit(classifier, load.images)]
    rows: dict[tuple[str, int], list[dict[str, float]]] = {}
    for _, service in itertools.product(range(rounds), services):
        bodies = service.write_bodies(load)
        with running(service) as (process, ready_s):
            run_wrk(service, bodies, 8, min(3, seconds))
            for connections in CONNECTIONS:
                result = run_wrk(service, bodies, connections, seconds, process=process)
                around = (limits[-1] + measure_limit(classifier, load.images)) / 2
                limits.append(around)
                result |= {"reached": result["per_second"] / around, "ready_s": ready_s, "mb": memory_mb(process)}
                rows.setdefault((service.name, connections), []).append(result)
            best = max(rows[service.name, connections][-1]["per_second"] for connections in CONNECTIONS)
            latency_ms = rows[service.name, 8][-1]["p50_ms"]
            delay_ms = max(0.0, LOAD_CONNECTIONS / (LOAD * best) * 1000 - latency_ms / 2)
            result = run_wrk(service, bodies, LOAD_CONNECTIONS, seconds, delay_ms, process)
            result |= {"reached": result["per_second"] / limits[-1], "ready_s": ready_s, "mb": memory_mb(process)}
            rows.setdefault((f"{service.name} at {LOAD:.0%} load", LOAD_CONNECTIONS), []).append(result)
    limit = statistics.median(limits)
    summary: list[dict[str, object]] = []
    for (name, connections), results in rows.items():
        medians = {key: statistics.median(result[key] for result in results) for key in results[0]}
        if name == EMPTY:
            medians["reachable"] = 1 / (1 + limit / CORES * medians["cpu_us"] / 1e6)
        row = {"what": load.name, "service": name, "connections": connections, "limit": round(limit)}
        summary.append(row | {key: round(value, 3) for key, value in medians.items()})
    return summary


def soak(load: Workload, service: Service, minutes: float) -> dict[str, object]:
    """Keep up a load of 70 % and look at the memory each minute. The first tenth is the warm-up."""
    bodies = service.write_bodies(load)
    with running(service) as (process, _):
        best = run_wrk(service, bodies, 8, 10)
        delay_ms = LOAD_CONNECTIONS / (LOAD * best["per_second"]) * 1000 - best["p50_ms"] / 2
        marks, results, started = [], [], time.monotonic()
        while time.monotonic() - started < 60 * minutes:
            results.append(run_wrk(service, bodies, LOAD_CONNECTIONS, min(60, 6 * minutes), max(0.0, delay_ms)))
            # Proportional memory changes with other processes that have opened the same libraries.
            marks.append(memory_mb(process, "Anonymous"))
            print(f"{len(marks)}: {marks[-1]} MB, {results[-1]['per_second']:.0f}/s", file=sys.stderr)
    warm = marks[len(marks) // 10]
    return {
        "what": load.name,
        "minutes": minutes,
        "requests": sum(result["requests"] for result in results),
        "errors": sum(result["errors"] for result in results),
        "mb_after_warm_up": warm,
        "growth_mb": round(marks[-1] - warm, 2),
    }


def find_workloads(data: Path, models: Path, folder: Path) -> list[Workload]:
    """Export the models, and write the images."""
    small = folder / "small"
    small.mkdir()
    digits = mnist(data / "mnist", small)[:1000]
    photos = [str(path) for path in sorted((data / "photos").iterdir())]
    photos = list(itertools.islice(itertools.cycle(photos), PHOTOS))
    loads = []
    for name, images in (("mobilenet_v3_small", photos), ("small-resnet", digits)):
        process = subprocess.run([sys.executable, HERE / "models.py", name, models], capture_output=True, text=True)
        if process.returncode:
            raise RuntimeError(process.stderr)
        part = folder / name
        part.mkdir()
        model = with_self_test(Path(process.stdout.strip()), images[0], part)
        loads.append(Workload(name, model, images, part))
    return loads


def main() -> None:
    """Measure, and save the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--litserve", metavar="PYTHON", help="of an environment that has LitServe")
    parser.add_argument("--bentoml", metavar="PYTHON", help="of an environment that has BentoML")
    parser.add_argument("--processes", type=int, metavar="N", help="measure clf-serve --processes N, too")
    parser.add_argument("--name", default="serving", help="of the file of results")
    parser.add_argument("--soak", type=float, metavar="MINUTES")
    parser.add_argument("--serve-options", default="", metavar="OPTIONS", help="further options of clf-serve")
    parser.add_argument("--data", default=os.environ.get("CLF_TEST_DATA", "data"), metavar="DIR")
    parser.add_argument("--models", default=str(Path(tempfile.gettempdir()) / "clf-benchmark-models"), metavar="DIR")
    arguments = parser.parse_args()
    packages = ["onnxruntime", "numpy", "pillow", "uvicorn", "httptools"]
    with tempfile.TemporaryDirectory() as temporary:
        loads = find_workloads(Path(arguments.data), Path(arguments.models), Path(temporary))
        rows: list[dict[str, object]] = []
        for load in loads:
            own = [str(BIN / "clf-serve"), "--model", str(load.model), "--port", str(PORT)]
            own += arguments.serve_options.split()
            services = [Service("clf-serve", own, "/v1/classify", "/readyz")]
            if arguments.processes:
                count = str(arguments.processes)
                name = f"clf-serve --processes {count}"
                services.append(Service(name, [*own, "--processes", count], "/v1/classify", "/readyz"))
            empty = [sys.executable, str(HERE / "empty_server.py"), str(PORT)]
            services.append(Service(EMPTY, empty, "/", "/"))
            served = [str(load.model), str(PORT), str(CORES)]
            if arguments.litserve:
                other = [arguments.litserve, str(HERE / "litserve_server.py"), *served]
                services.append(Service("LitServe", other, "/predict", "/health", '{"image": "%s"}'))
            if arguments.bentoml:
                other = [arguments.bentoml, str(HERE / "bentoml_server.py"), *served]
                services.append(Service("BentoML", other, "/classify", "/readyz", '{"images": ["%s"]}'))
            if arguments.soak:
                rows.append(soak(load, services[0], arguments.soak))
            else:
                rows += measure(load, services, arguments.seconds, arguments.rounds)
        save_result("serving_soak" if arguments.soak else arguments.name, rows, packages)
    if arguments.soak:
        sys.exit(any(float(str(row["growth_mb"])) >= MOST_GROWTH_MB or row["errors"] for row in rows))


if __name__ == "__main__":
    main()
