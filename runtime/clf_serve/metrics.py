"""What `/metrics` shows, in the format of Prometheus."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.registry import Collector

from clf_runtime import __version__

if TYPE_CHECKING:
    from clf_serve.member import Member

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counters and histograms of one service. Safe to use from several threads.

    Attributes:
        queue: Seconds that an image waited for a worker.
        decode: Seconds to decode and resize a batch.
        infer: Seconds to run the graph on a batch.
        batch_sizes: Images per batch.
    """

    def __init__(self) -> None:
        """Create them, all zero."""
        disable_created_metrics()  # type: ignore[no-untyped-call]  # they would double the page
        self._registry = CollectorRegistry()
        self._shown: Collector = self._registry
        ProcessCollector(registry=self._registry)
        self._requests = Counter(
            "clf_requests", "Requests by endpoint and status.", ("endpoint", "status"), registry=self._registry
        )
        self._images = Counter(
            "clf_images", "Images by outcome: ok, or the kind of error.", ("outcome",), registry=self._registry
        )
        self._reloads = Counter(
            "clf_reloads", "Replacements of the model: loaded, refused.", ("outcome",), registry=self._registry
        )
        stages = Histogram(
            "clf_stage_seconds",
            "Seconds per stage: arrival of the body, queue (per image), decode and infer (per batch), total.",
            ("stage",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._arrival, self.queue, self.decode, self.infer, self._total = (
            stages.labels(name) for name in ("arrival", "queue", "decode", "infer", "total")
        )
        self.batch_sizes = Histogram(
            "clf_batch_images", "Images per batch.", buckets=_BATCH_SIZES, registry=self._registry
        )
        self._model = Info("clf_model", "The model that runs.", registry=self._registry)
        for outcome in ("loaded", "refused"):
            self._reloads.labels(outcome)
        self._images.labels("ok")

    def watch(self, name: str, help_text: str, read: Callable[[], float]) -> None:
        """Show a number that is read whenever the metrics are."""
        Gauge(name, help_text, registry=self._registry).set_function(read)

    def count_request(self, endpoint: str, status: int) -> None:
        """Count a request with its answer."""
        self._requests.labels(endpoint, str(status)).inc()

    def observe_request(self, arrival_s: float | None, total_s: float) -> None:
        """Count the seconds from the headers of a request to the end of its body, if it was read, and to its answer."""
        if arrival_s is not None:
            self._arrival.observe(arrival_s)
        self._total.observe(total_s)

    def count_image(self, outcome: str) -> None:
        """Count an image: `ok`, or the kind of its error."""
        self._images.labels(outcome).inc()

    def count_reload(self, outcome: str) -> None:
        """Count a replacement of the model: `loaded` or `refused`."""
        self._reloads.labels(outcome).inc()

    def describe_model(self, sha256: str, provider: str) -> None:
        """Show which model runs."""
        self._model.info({"sha256": sha256, "provider": provider, "version": __version__})

    def pool(self, member: Member) -> None:
        """Show the sum of all processes from now on."""
        from clf_serve.pooled_metrics import PooledMetrics

        pooled = PooledMetrics(member.shared, member.place, self._registry)
        member.publish = pooled.publish
        self._shown = pooled

    def render(self) -> bytes:
        """Return all of it as text."""
        return bytes(generate_latest(self._shown))
