"""The published models with random weights, and their published settings."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from make_random_checkpoint import CONFIGS, write_checkpoint


@dataclass(frozen=True)
class Published:
    """How a published model is used.

    Attributes:
        tokenizer: the folder of its tokenizer.
        init: arguments of both rerankers.
        reference_options: of FlagEmbedding's calls on a CPU.
    """

    tokenizer: str
    init: dict[str, Any]
    reference_options: dict[str, Any]


PUBLISHED = {
    "bge-reranker-base": Published("xlm-roberta", {}, {}),
    "bge-reranker-v2-m3": Published("xlm-roberta", {}, {}),
    # FlagEmbedding computes the logits of all 256,000 words at every token: at its batch size of 128, tens of GB.
    "bge-reranker-v2-gemma": Published("gemma", {}, {"batch_size": 8}),
    "bge-reranker-v2-minicpm-layerwise": Published("llama2", {"cutoff_layers": [28]}, {}),
    "bge-reranker-v2.5-gemma2-lightweight": Published(
        "gemma", {"cutoff_layers": [25], "compress_layers": [8], "compress_ratio": 2}, {}
    ),
}


def make_model(name: str, out: Path, tokenizers: Path, layers: int | None) -> dict[str, Any]:
    """Write a checkpoint of random weights; the arguments of its rerankers.

    Args:
        layers: with fewer than the model has, cutoff and compression happen in the same place in proportion.
    """
    published = PUBLISHED[name]
    tokenizer = tokenizers / published.tokenizer
    write_checkpoint(name, out, tokenizer=tokenizer, layers=layers, seed=0, shard_bytes=5_000_000_000)
    if layers is None:
        return dict(published.init)
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    full = json.loads(CONFIGS.read_text(encoding="utf-8"))[name]["num_hidden_layers"]
    return scale_layers(published.init, layers, full, config.get("start_layer", 1))


def scale_layers(init: dict[str, Any], layers: int, full: int, start_layer: int) -> dict[str, Any]:
    """Cutoff and compression for a model of `layers` layers instead of `full`; it has heads from `start_layer` on."""
    scaled = dict(init)
    for key, least in (("cutoff_layers", start_layer), ("compress_layers", 1)):
        if key in init:
            scaled[key] = [max(least, round(layer * layers / full)) for layer in init[key]]
    return scaled
