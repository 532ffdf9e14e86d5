"""The server's metrics for Prometheus, through Ray."""

from __future__ import annotations

from ray.util.metrics import Counter, Gauge, Histogram

from launch.serving.responses import Served

BOUNDARIES_MS = [10.0, 20.0, 35.0, 50.0, 75.0, 100.0, 150.0, 200.0, 300.0, 500.0, 1000.0, 3000.0]


class ServingMetrics:
    """Counts and times of all requests; implements `launch.serving.watching.Watcher`."""

    def __init__(self) -> None:
        by_model, prefix = ("model",), "latency_budget_serve_"
        self._requests = Counter(
            f"{prefix}requests", "Requests by what became of them.", ("model", "outcome")
        )
        self._violations = Counter(
            f"{prefix}violations", "Answers that came after their budget.", by_model
        )
        self._total_ms = Histogram(
            f"{prefix}total_ms", "Arrival to end of the answer, ms.", BOUNDARIES_MS, by_model
        )
        self._latency_ms = Histogram(
            f"{prefix}latency_ms", "Latency of the episode, ms.", BOUNDARIES_MS, by_model
        )
        self._waited_ms = Histogram(
            f"{prefix}waited_ms", "Time in the queue, ms.", BOUNDARIES_MS, by_model
        )
        self._choices = Counter(
            f"{prefix}choices", "Configurations that ran, by knob.", ("model", "knob", "value")
        )
        self._waiting = Gauge(f"{prefix}waiting", "Requests in the queue.")
        self._running = Gauge(f"{prefix}running", "Requests that are being answered.")
        self._replicas = Gauge(f"{prefix}replicas", "Replicas that are ready.")

    def answered(self, model: str, served: Served) -> None:
        """See `Watcher.answered`."""
        tags = {"model": model}
        outcome = "answered_cheapest" if served.is_late else "answered"
        self._requests.inc(tags={**tags, "outcome": outcome})
        if not served.within_budget:
            self._violations.inc(tags=tags)
        self._total_ms.observe(served.total_ms, tags=tags)
        self._latency_ms.observe(served.result.latency_ms, tags=tags)
        self._waited_ms.observe(served.waited_ms, tags=tags)
        for knob, value in served.result.knobs.to_json().items():
            self._choices.inc(tags={**tags, "knob": knob, "value": str(value)})

    def refused(self, model: str, code: str) -> None:
        """See `Watcher.refused`."""
        self._requests.inc(tags={"model": model, "outcome": code})

    def queue(self, *, num_waiting: int, num_running: int, num_replicas: int) -> None:
        """See `Watcher.queue`."""
        self._waiting.set(num_waiting)
        self._running.set(num_running)
        self._replicas.set(num_replicas)


def count_replica_start() -> None:
    """Counts the start of a replica; all but the first ones are restarts."""
    Counter("latency_budget_serve_replica_starts", "Starts of replicas.").inc()
