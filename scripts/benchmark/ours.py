"""The worker for this project."""

import os
import time
from typing import Any

from benchmark.protocol import peak_memory, product_rate, serve


class Ours:
    """A reranker, and counters of what it compiles."""

    def __init__(self, settings: dict[str, Any]) -> None:
        import jax

        from flax_rerank import FlaxAutoReranker
        from flax_rerank.compile_cache import use_compile_cache

        self._compile_seconds: list[float] = []
        jax.monitoring.register_event_duration_secs_listener(self._record)
        if settings["compile_cache"] is not None:
            use_compile_cache(settings["compile_cache"])
        self._reranker = FlaxAutoReranker.from_finetuned(
            settings["model"],
            dtype=settings["dtype"],
            devices=settings["devices"],
            show_progress_bar=False,
            **settings["init"],
        )

    def _record(self, event: str, seconds: float, **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            self._compile_seconds.append(seconds)

    def describe(self) -> dict[str, Any]:
        import jax

        import flax_rerank

        return {
            "class": type(self._reranker).__name__,
            "dtype": self._reranker.dtype.name,
            "threads": len(os.sched_getaffinity(0)),
            "devices": [device.device_kind for device in self._reranker.mesh.devices.flat],
            "versions": {"flax_rerank": flax_rerank.__version__, "jax": jax.__version__},
        }

    def score(self, pairs: list[list[str]], options: dict[str, Any]) -> dict[str, Any]:
        compiled = len(self._compile_seconds)
        start = time.perf_counter()
        output = self._reranker.score(pairs, **options)
        seconds = time.perf_counter() - start
        scores = output.scores
        return {
            "seconds": seconds,
            "scores": [s.tolist() for s in scores.values()] if isinstance(scores, dict) else scores.tolist(),
            "dtype": self._reranker.dtype.name,
            "computed_tokens": output.computed_tokens,
            "padding_tokens": output.padding_tokens,
            "steps": output.steps,
            "shapes": output.shapes,
            "compiles": len(self._compile_seconds) - compiled,
            "compile_seconds": sum(self._compile_seconds[compiled:]),
        }

    def device_alone(self, pairs: list[list[str]], options: dict[str, Any]) -> dict[str, Any]:
        """Seconds of the same steps when everything that the host does for them is done before; the pairs' tokens, and
        the operations that their scores need: without padding, and without what is computed twice."""
        import jax

        from flax_rerank.operations import compress_pair, count_work, sizes_of
        from flax_rerank.scoring import make_batch

        prepared = self._reranker.prepare(pairs, **options)
        scorer = self._reranker._scorer
        call, sizes = prepared.call, sizes_of(self._reranker.spec.config, self._reranker.spec.readout)
        ratio = getattr(call.settings, "compress_ratio", 1)
        flops = 0
        for length, passage in zip(prepared.tokens.tolist(), prepared.pairs.passage_lengths.tolist(), strict=True):
            compressed = compress_pair(length, passage, call.compressed, ratio)
            flops += count_work(sizes, length, call.readout.layers[-1], compressed).operations
        steps = [(step, make_batch(prepared.pairs, step), call.static(step.shape)) for step in prepared.steps]
        fronts: dict[int, Any] = {}
        results = []
        start = time.perf_counter()
        for step, batch, static in steps:
            front = scorer.front(self._reranker.params, prepared.pairs, step, static, fronts)
            results.append(scorer._dispatch(self._reranker.params, batch, static, front))
        jax.block_until_ready(results)
        return {"seconds": time.perf_counter() - start, "tokens": int(prepared.tokens.sum()), "flops": flops}

    def product(self, size: int) -> dict[str, Any]:
        import jax

        device = self._reranker.mesh.devices.flat[0]
        matrix = jax.device_put(
            jax.random.normal(jax.random.key(0), (size, size)).astype(self._reranker.dtype), device
        )
        precision = "highest" if matrix.dtype == "float32" else None
        multiply = jax.jit(lambda a, b: jax.numpy.dot(a, b, precision=precision))
        return {"flops_per_second": product_rate(size, lambda: multiply(matrix, matrix).block_until_ready())}

    def memory(self) -> dict[str, Any]:
        stats = self._reranker.mesh.devices.flat[0].memory_stats() or {}
        return {"peak_bytes": peak_memory(), "device_peak_bytes": stats.get("peak_bytes_in_use")}


if __name__ == "__main__":
    serve(Ours)
