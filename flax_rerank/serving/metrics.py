"""What the server counts, for Prometheus. Nothing of it holds a text of a request."""

import jax
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

COMPILED = "/jax/core/compile/backend_compile_duration"
PAIRS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """The metrics of one server, in a registry of its own."""

    def __init__(self) -> None:
        registry = CollectorRegistry()
        self._registry = registry
        prefix = "flax_rerank_"
        self.requests = Counter(prefix + "requests", "Answered requests", ["api", "status"], registry=registry)
        self.seconds = Histogram(
            prefix + "request_seconds", "From a request to its answer", ["api"], buckets=SECONDS, registry=registry
        )
        self.waiting = Gauge(prefix + "pairs_waiting", "Pairs that wait to be scored", registry=registry)
        self.pairs = Counter(prefix + "pairs", "Scored pairs", registry=registry)
        self.batch = Histogram(
            prefix + "batch_pairs", "Pairs that were scored together", buckets=PAIRS, registry=registry
        )
        self.shared = Histogram(
            prefix + "batch_requests", "Requests that were scored together", buckets=PAIRS, registry=registry
        )
        self.dropped = Counter(
            prefix + "dropped_pairs",
            "Pairs that were not scored: the client went away, or the deadline passed",
            registry=registry,
        )
        self.tokens = Counter(prefix + "computed_tokens", "Tokens computed, padding included", registry=registry)
        self.padding = Counter(prefix + "padding_tokens", "Tokens computed that belong to no pair", registry=registry)
        self.compilations = Counter(prefix + "compilations", "Programs compiled while serving", registry=registry)
        self.ready = Gauge(prefix + "ready", "1 after the warm-up", registry=registry)

    def count_compilations(self) -> None:
        """From now on, count what JAX compiles in this process."""

        def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
            if event == COMPILED:
                self.compilations.inc()

        jax.monitoring.register_event_duration_secs_listener(listen)

    def text(self) -> bytes:
        """All values in Prometheus' text format."""
        return generate_latest(self._registry)
