"""The metrics of several processes as one: whichever answers, `/metrics` shows the sum.

Each process publishes its metrics every second, and before it shows any. A replaced process continues the counters of
the one before it. So no counter that was shown ever gets smaller.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from clf_serve.shared import READY, SharedState

# The sum of these means nothing. The largest start time changes when a process is replaced.
_LARGEST = {"clf_model", "process_start_time_seconds", "process_max_fds"}
_CUMULATIVE = {"counter", "histogram"}


class PooledMetrics(Collector):
    """The metrics of all processes, as one of them sees them. prometheus-client renders it like a registry."""

    def __init__(self, shared: SharedState, place: int, own: CollectorRegistry) -> None:
        """Store the metrics of this process, and those that its predecessor left."""
        self._shared = shared
        self._place = place
        self._own = own
        self._former = [metric for metric in _parse(shared.snapshot(place)) if metric.type in _CUMULATIVE]

    def publish(self) -> None:
        """Let the other processes see the metrics of this one."""
        self._shared.publish(self._place, _render(_sum([self._former, self._own.collect()])))

    def collect(self) -> Iterable[Metric]:
        """Return the sum of all processes. Of those that are not ready, only the counters count."""
        self.publish()
        parts = []
        for place in range(self._shared.places):
            metrics = _parse(self._shared.snapshot(place))
            is_ready = self._shared.state(place) == READY
            parts.append([metric for metric in metrics if is_ready or metric.type in _CUMULATIVE])
        processes = GaugeMetricFamily(
            "clf_processes", "Processes that are wanted, and that are ready.", None, ["state"]
        )
        processes.add_metric(["wanted"], self._shared.places)
        processes.add_metric(["ready"], self._shared.ready)
        restarts = CounterMetricFamily("clf_process_restarts", "Processes that ended and were replaced.")
        restarts.add_metric([], self._shared.restarts)
        return [*_sum(parts), processes, restarts]


def _sum(parts: Iterable[Iterable[Metric]]) -> list[Metric]:
    """Add the samples that have the same name and labels."""
    families: dict[str, Metric] = {}
    values: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]] = {}
    for metric in (metric for part in parts for metric in part):
        families.setdefault(metric.name, Metric(metric.name, metric.documentation, metric.type))
        add: Callable[[float, float], float] = max if metric.name in _LARGEST else float.__add__
        known = values.setdefault(metric.name, {})
        for sample in metric.samples:
            key = (sample.name, tuple(sample.labels.items()))
            known[key] = add(known[key], float(sample.value)) if key in known else float(sample.value)
    for name, metric in families.items():
        for (sample_name, labels), value in values[name].items():
            metric.add_sample(sample_name, dict(labels), value)
    return list(families.values())


def _render(metrics: Iterable[Metric]) -> bytes:
    rows = [
        (
            metric.name,
            metric.documentation,
            metric.type,
            [(each.name, each.labels, each.value) for each in metric.samples],
        )
        for metric in metrics
    ]
    return json.dumps(rows).encode()


def _parse(snapshot: bytes) -> list[Metric]:
    metrics = []
    for name, documentation, kind, samples in json.loads(snapshot or b"[]"):
        metric = Metric(name, documentation, kind)
        for sample in samples:
            metric.add_sample(*sample)
        metrics.append(metric)
    return metrics
