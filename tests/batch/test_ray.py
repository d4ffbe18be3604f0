"""clf-batch on Ray: one real run on one core. What dies, and how often, is in test_deaths.py."""

from __future__ import annotations

import pytest

pytest.importorskip("ray", reason="the extra [batch] is not installed")
from batch_runs import rows_of, run_here

from clf_batch.callbacks import Callbacks
from clf_batch.cluster import connected
from clf_batch.run import run
from clf_runtime.errors import MachineError

SILENT = Callbacks(lambda: None, lambda part: None, lambda warning: None)


def test_the_command_writes_what_a_worker_without_ray_writes(command, options, digits, artifacts, tmp_path):
    arguments = ("-a", artifacts, "-r", "--shard-size", 100, "--device", "cpu", "--threads", 1)
    done = command("clf-batch", digits, "gone.png", "--output", "out", *arguments)
    assert (done.code, done.out) == (1, ""), done.err
    lines = done.err.splitlines()
    assert lines[-1].startswith("clf-batch: 360 images, 1 failed, ")
    assert all(line.startswith("clf-batch: ") for line in lines)
    run_here(options(digits, "gone.png", shard_size=100, output=str(tmp_path / "here")))
    assert rows_of(tmp_path / "out") == rows_of(tmp_path / "here")
    again = command("clf-batch", digits, "gone.png", "--output", "out", *arguments, "--resume")
    assert again.error == "clf-batch: 360 images, 1 failed; the run was complete already"


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:1", "no cluster answers there (connection refused); start one with `ray start --head`"),
        ("ray://127.0.0.1:1", "no cluster answers there (connection refused)"),
        ("cluster", "is none; expected local, auto, HOST:PORT or ray://HOST:PORT"),
    ],
)
def test_an_address_without_a_cluster_is_one_line(options, samples, tmp_path, address, message):
    run_options = options(samples[0], address=address)
    with pytest.raises(MachineError) as error:
        run(run_options, SILENT)
    assert str(error.value).startswith(f"--address {address}: {message}")
    assert not (tmp_path / "out").exists()
    with pytest.raises(MachineError), connected(run_options.cluster, 0):
        pass


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Missing argument 'INPUT...'"),
        (("x.png",), "Missing option '--output'"),
        (("x.png", "-o", "out", "--resume", "--overwrite"), "--resume and --overwrite contradict each other"),
        (("x.png", "-o", "out", "--address", "auto", "--threads", "2"), "--threads needs --address local"),
        (("x.png", "-o", "out", "--threads", "1", "--worker-threads", "2"), "--worker-threads must not exceed"),
    ],
)
def test_options_that_contradict_each_other_are_usage_errors(arguments, message):
    from click.testing import CliRunner

    from clf_batch.cli import command

    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 2
    assert message in result.output
