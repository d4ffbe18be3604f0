"""Options of clf-batch, and a small Ray cluster."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("pyarrow", reason="the extra [batch] is not installed")
pytest.importorskip("fsspec", reason="the extra [batch] is not installed")

from clf_batch.options import BatchOptions, ClusterOptions, InputOptions, ModelOptions, ResultOptions

MakeOptions = Callable[..., BatchOptions]


@pytest.fixture
def options(model: Path, tmp_path: Path) -> MakeOptions:
    """A function that returns the options of a run of the shared model, into a new folder unless another is named."""

    def make(*inputs: object, **changes: object) -> BatchOptions:
        given = BatchOptions(
            InputOptions(tuple(map(str, inputs)), True, None, 10, str(tmp_path)),
            ModelOptions(model, "cpu", 1, 8, 512_000_000),
            ResultOptions(str(tmp_path / "out"), 1, None, False, False),
            ClusterOptions("local", 1, None, 0.0),
        )
        parts = {part: getattr(given, part) for part in ("inputs", "model", "results", "cluster")}
        for name, value in changes.items():
            part = next(part for part, fields in parts.items() if hasattr(fields, name))
            parts[part] = replace(parts[part], **{name: value})
        return BatchOptions(**parts)

    return make


@pytest.fixture(scope="session")
def cluster() -> Iterator[object]:
    """A Ray cluster of one machine with two cores; for slow tests."""
    pytest.importorskip("ray", reason="the extra [batch] is not installed")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 2, "include_dashboard": False, "object_store_memory": 100_000_000}
    running = Cluster(initialize_head=True, head_node_args=head)
    yield running
    running.shutdown()
