"""clf-batch beside clf-run and a plain Ray Data script; its memory and its first result with a million names.

usage: batch.py [rate|names|listing]... [--model FILE] [--images N] [--names N] [--rounds N]

rate     A list of the images beside the model, over and over, classified by clf-run, clf-batch and batch_ray_data.py
         (if ray[data] and torchvision are installed) in turn. The rate of clf-batch counts from its first worker on;
         only after a minute does it not matter any more that the other workers start later.
names    Peak memory of the driver and of the workers with 1,000 names and with --names of them in a list, of which each
         hundredth leads to an image.
listing  The time until the first shard of a bucket with --names objects is known, and until all are. The bucket is a
         server in this process that answers ListObjectsV2 with pages of 1,000 names, after 50 ms each.
"""

from __future__ import annotations

import argparse
import http.server
import itertools
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from measure import run as run_process
from measure import save_result

from clf_runtime.machine import usable_cores

HERE = Path(__file__).parent
BIN = Path(sys.executable).parent
_PAGE, _PAGE_S = 1000, 0.05


def measure_rates(model: Path, images: int, rounds: int) -> dict[str, object]:
    """Return the images per second of each program, the median over rounds, and the ratio to clf-run."""
    samples = sorted(model.parent.joinpath("samples").resolve().iterdir())
    rates: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        names = Path(folder, "names.txt")
        names.write_text("".join(f"{sample}\n" for sample in itertools.islice(itertools.cycle(samples), images)))
        for _ in range(rounds):
            for name, rate in (("clf-run", _rate_of_run), ("clf-batch", _rate_of_batch), ("ray.data", _rate_of_script)):
                if (found := rate(model, names, images)) is not None:
                    rates.setdefault(name, []).append(found)
                    print(f"{name}: {found:,.0f} images/s", file=sys.stderr)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    ratios = {name: round(value / medians["clf-run"], 3) for name, value in medians.items()}
    return {"images": images, "rounds": rounds, "images_per_s": medians, "relative_to_clf_run": ratios}


def _rate_of_run(model: Path, names: Path, images: int) -> float:
    output = names.parent / "results.jsonl"
    run = run_process(
        [str(BIN / "clf-run"), f"@{names}", "-m", str(model), "--format", "jsonl", "-o", str(output), "--device", "cpu"]
    )
    return images / run.seconds


def _rate_of_batch(model: Path, names: Path, images: int) -> float:
    # Some shards for each worker, so that none is idle for long at the end.
    shard_size = min(2000, max(1, images // (20 * usable_cores())))
    command = [BIN / "clf-batch", f"@{names}", "-m", model, "-o", names.parent / "results", "--overwrite"]
    command += ["--device", "cpu", "--shard-size", shard_size]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=True)
    (rate,) = re.findall(r"([\d,.]+) images/s", done.stderr.splitlines()[-1])
    return float(rate.replace(",", ""))


def _rate_of_script(model: Path, names: Path, images: int) -> float | None:
    if find_spec("pandas") is None or find_spec("torchvision") is None:
        return None
    script = [sys.executable, HERE / "batch_ray_data.py", model, names, names.parent / "baseline"]
    done = subprocess.run([*map(str, script)], capture_output=True, text=True, check=True)
    return images / float(done.stdout.split()[-1])


def measure_names(model: Path, names: int) -> dict[str, object]:
    """Return the peak memory of the driver and the largest worker with few and with many names."""
    sample = next(iter(sorted(model.parent.joinpath("samples").iterdir())))
    peaks = {}
    for count in (1000, names):
        with tempfile.TemporaryDirectory() as folder:
            lines = (f"{sample}{f'-{n}.png' if n % 100 else ''}\n" for n in range(count))
            Path(folder, "names.txt").write_text("".join(lines))
            command = [BIN / "clf-batch", f"@{folder}/names.txt", "-m", model, "-o", f"{folder}/out", "--device", "cpu"]
            process = subprocess.Popen([*map(str, command)], stderr=subprocess.DEVNULL)
            peaks[count] = _watch(process)
    return {"names": peaks}


def _watch(process: subprocess.Popen[bytes]) -> dict[str, float]:
    """Return the peak memory in MB of a process and of its workers, sampled until it ends."""
    peaks = {"driver": 0.0, "worker": 0.0}
    while process.poll() is None:
        for path in Path("/proc").glob("[0-9]*"):
            try:
                is_worker = path.joinpath("cmdline").read_bytes().startswith(b"ray::ShardWorker")
                if not is_worker and int(path.name) != process.pid:
                    continue
                resident_mb = int(path.joinpath("statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
            except (OSError, ValueError, IndexError):
                continue
            kind = "worker" if is_worker else "driver"
            peaks[kind] = max(peaks[kind], round(resident_mb, 1))
        time.sleep(0.2)
    return peaks


class Bucket(http.server.BaseHTTPRequestHandler):
    """Answers ListObjectsV2 for a bucket of `names` objects."""

    protocol_version = "HTTP/1.1"
    names = 0

    def do_GET(self) -> None:
        """Answer with the next page."""
        query = urllib.parse.parse_qs(urllib.parse.urlparse(self.path).query)
        first = int(query.get("continuation-token", ["0"])[0])
        last = min(first + _PAGE, self.names)
        time.sleep(_PAGE_S)
        objects = "".join(
            f"<Contents><Key>images/{n:09}.png</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
            f'<ETag>"0"</ETag><Size>1</Size></Contents>'
            for n in range(first, last)
        )
        more = f"<NextContinuationToken>{last}</NextContinuationToken>" if last < self.names else ""
        body = (
            '<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>bucket</Name>'
            f"<IsTruncated>{str(bool(more)).lower()}</IsTruncated>{more}{objects}</ListBucketResult>"
        ).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_HEAD(self) -> None:
        """Answer that the folder is no object."""
        self.send_response(404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Print nothing."""


def measure_listing(names: int) -> dict[str, object]:
    """Return the seconds until the first and until the last shard of a bucket is known."""
    from clf_batch.inputs.find import find_units
    from clf_batch.options import InputOptions
    from clf_batch.shards import make_shards

    Bucket.names = names
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Bucket)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    os.environ |= {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1"}
    os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{server.server_address[1]}"
    started = time.monotonic()
    shards = make_shards(find_units(InputOptions(("s3://bucket/images/",), True, None, 2000, "")), 2000)
    next(shards)
    first_s = time.monotonic() - started
    count = 1 + sum(1 for _ in shards)
    seconds = {"first_shard_s": round(first_s, 2), "all_shards_s": round(time.monotonic() - started, 2)}
    server.shutdown()
    return {"objects": names, "shards": count, **seconds}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is named, and save it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=["rate", "names", "listing"], default=["rate", "names", "listing"])
    parser.add_argument("--model", type=Path, default=Path("artifacts/model.onnx"))
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--names", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args(arguments)
    for part in given.parts:
        if part == "rate":
            result = {"cores": usable_cores(), **measure_rates(given.model.absolute(), given.images, given.rounds)}
        elif part == "names":
            result = measure_names(given.model.absolute(), given.names)
        else:
            result = measure_listing(given.names)
        save_result(f"batch_{part}", result, ["ray", "pyarrow", "onnxruntime"])


if __name__ == "__main__":
    main()
