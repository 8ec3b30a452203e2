"""The worker for FlagEmbedding, in its own environment."""

import time
from importlib.metadata import version
from typing import Any

from benchmark.protocol import peak_memory, product_rate, serve


class Theirs:
    """A reranker as its users make it, with a record of the batches that its model is given."""

    def __init__(self, settings: dict[str, Any]) -> None:
        import FlagEmbedding
        import torch

        if settings["threads"] is not None:
            torch.set_num_threads(settings["threads"])
        self._gpu = settings["devices"] == "gpu"
        self._dtype = torch.float32
        half = {}
        if self._gpu and settings["dtype"] == "bfloat16":
            half, self._dtype = {"use_fp16": True}, torch.float16
        elif settings["dtype"] == "bfloat16":
            half, self._dtype = {"use_bf16": True}, torch.bfloat16
        elif settings["class"] in ("LayerWiseFlagLLMReranker", "LightWeightFlagLLMReranker"):
            half = {"use_fp16": True}  # they insist on it, and on a CPU compute in float32 all the same
        devices = "cuda:0" if self._gpu else "cpu"
        reranker = getattr(FlagEmbedding, settings["class"])
        self._reranker = reranker(settings["model"], devices=devices, **half, **settings["init"])
        self._batches: list[tuple[int, int]] = []
        self._forward = self._reranker.model.forward
        self._reranker.model.forward = self._recorded

    def _recorded(self, *arguments: Any, **keywords: Any) -> Any:
        output = self._forward(*arguments, **keywords)
        self._batches.append((keywords["input_ids"].numel(), keywords["attention_mask"]))
        return output

    def describe(self) -> dict[str, Any]:
        import torch

        return {
            "class": type(self._reranker).__name__,
            "threads": torch.get_num_threads(),
            "attention": self._reranker.model.config._attn_implementation,
            "matmul_precision": torch.get_float32_matmul_precision(),
            "instructions": torch.backends.cpu.get_cpu_capability(),
            "versions": {name: version(name) for name in ("FlagEmbedding", "transformers", "torch")},
        }

    def score(self, pairs: list[list[str]], options: dict[str, Any]) -> dict[str, Any]:
        self._batches.clear()
        start = time.perf_counter()
        scores = self._reranker.compute_score(pairs, **options)
        seconds = time.perf_counter() - start
        # The first batch is run once more before all others, to see whether it fits into memory.
        (probe, _), *batches = self._batches
        computed = sum(tokens for tokens, _ in batches)
        return {
            "seconds": seconds,
            "scores": scores,
            "dtype": self._only_dtype(),
            "computed_tokens": computed,
            "padding_tokens": computed - sum(int(mask.sum()) for _, mask in batches),
            "probe_tokens": probe,
            "steps": len(batches),
        }

    def _only_dtype(self) -> str:
        """The dtype of all parameters, as they are after a call, which may change it."""
        dtypes = {parameter.dtype for parameter in self._reranker.model.parameters()}
        if dtypes != {self._dtype}:
            raise RuntimeError(f"FlagEmbedding computes in {dtypes}, and {self._dtype} was asked for")
        return str(self._dtype).removeprefix("torch.")

    def product(self, size: int) -> dict[str, Any]:
        import torch

        matrix = torch.randn(size, size).to("cuda:0" if self._gpu else "cpu", self._dtype)

        def multiply() -> None:
            matrix @ matrix
            if self._gpu:
                torch.cuda.synchronize()

        return {"flops_per_second": product_rate(size, multiply)}

    def memory(self) -> dict[str, Any]:
        import torch

        device = torch.cuda.max_memory_allocated() if self._gpu else None
        return {"peak_bytes": peak_memory(), "device_peak_bytes": device}


if __name__ == "__main__":
    serve(Theirs)
