"""LightWeightFlaxLLMReranker: early exit and token compression (FlagEmbedding's LightWeightFlagLLMReranker)."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from flax_rerank.batching import GRID
from flax_rerank.models import Compression
from flax_rerank.pairs import TokenizedPairs
from flax_rerank.rerankers.base import Call, Pairs, RerankOutput
from flax_rerank.rerankers.decoder import DecoderReranker
from flax_rerank.rerankers.layerwise import CutoffLayers
from flax_rerank.sharding import DEFAULT_RULES, Devices, MeshShape, ShardingRules

RATIOS = (1, 2, 4, 8)


class LightWeightFlaxLLMReranker(DecoderReranker):
    """Scores a pair after any of the upper layers, and on the way there averages passage tokens in groups.

    For bge-reranker-v2.5-gemma2-lightweight. Arguments have the names, defaults and meanings of FlagEmbedding's
    LightWeightFlagLLMReranker; see `AbsReranker`, and

    Args:
        peft_path: a LoRA adapter (folder or hub name) to merge into the weights.
        cutoff_layers: the layer or layers to score after, counted from 1; by default the last one.
        compress_layers: the layers before which passage tokens are averaged, counted from 0. Layer 0 is left out,
            as in the reference; several layers compound.
        compress_ratio: tokens that become one: 1 (no compression), 2, 4 or 8.
        prompt: the question put after the passage.
        head_index: "reference" scores the lowest layer asked with the first head, the next one with the second, and
            so on, as FlagEmbedding does: its published scores come from that. "layer" takes each layer's own head.
        attention_softcap: "reference" leaves it out, as FlagEmbedding's class does, which runs Gemma 2 with an
            attention that has none; "config" applies the one of the model's config.
    """

    model_class = "decoder-only-lightweight"
    default_prompt = "Predict whether passage B contains an answer to query A."

    def __init__(
        self,
        model_name_or_path: str,
        peft_path: str | None = None,
        use_fp16: bool = False,
        use_bf16: bool = False,
        query_instruction_for_rerank: str | None = "A: ",
        query_instruction_format: str = "{}{}",
        passage_instruction_for_rerank: str | None = "B: ",
        passage_instruction_format: str = "{}{}",
        cache_dir: str | None = None,
        trust_remote_code: bool = False,
        devices: Devices = None,
        cutoff_layers: CutoffLayers = None,
        compress_layers: Sequence[int] = (8,),
        compress_ratio: int = 1,
        prompt: str | None = None,
        batch_size: int = 128,
        query_max_length: int | None = None,
        max_length: int = 512,
        normalize: bool = False,
        *,
        head_index: Literal["reference", "layer"] = "reference",
        attention_softcap: Literal["reference", "config"] = "reference",
        dtype: str | None = None,
        mesh: MeshShape = None,
        sharding_rules: ShardingRules = DEFAULT_RULES,
        show_progress_bar: bool | None = None,
        passage_max_length: int | None = None,
    ) -> None:
        if head_index not in ("reference", "layer"):
            raise ValueError(f"head_index {head_index!r} is neither 'reference' nor 'layer'")
        if attention_softcap not in ("reference", "config"):
            raise ValueError(f"attention_softcap {attention_softcap!r} is neither 'reference' nor 'config'")
        self.head_index = head_index
        self.attention_softcap = attention_softcap
        super().__init__(
            model_name_or_path,
            peft_path=peft_path,
            prompt=prompt,
            use_fp16=use_fp16,
            use_bf16=use_bf16,
            dtype=dtype,
            query_instruction_for_rerank=query_instruction_for_rerank,
            query_instruction_format=query_instruction_format,
            passage_instruction_for_rerank=passage_instruction_for_rerank,
            passage_instruction_format=passage_instruction_format,
            cache_dir=cache_dir,
            devices=devices,
            mesh=mesh,
            sharding_rules=sharding_rules,
            batch_size=batch_size,
            query_max_length=query_max_length,
            max_length=max_length,
            normalize=normalize,
            show_progress_bar=show_progress_bar,
            passage_max_length=passage_max_length,
        )
        self.cutoff_layers = cutoff_layers
        self.compress_layers = compress_layers
        self.compress_ratio = compress_ratio
        self._cutoff_layers(cutoff_layers)
        if compress_ratio != 1:
            self._compression(compress_layers, compress_ratio)

    def compute_score(
        self,
        sentence_pairs: Pairs,
        batch_size: int | None = None,
        query_max_length: int | None = None,
        max_length: int | None = None,
        cutoff_layers: CutoffLayers = None,
        compress_layer: Sequence[int] | None = None,
        compress_layers: Sequence[int] | None = None,
        compress_ratio: int | None = None,
        prompt: str | None = None,
        normalize: bool | None = None,
        show_progress_bar: bool | None = None,
    ) -> list[float] | list[list[float]]:
        """Score pairs of query and passage.

        Args:
            sentence_pairs: one pair of strings, or a sequence of pairs.
            batch_size, query_max_length, max_length, cutoff_layers, compress_layers, compress_ratio, prompt,
                normalize, show_progress_bar: instead of the constructor's values, for this call.
            compress_layer: the old name of `compress_layers`.

        Returns:
            For one layer a float per pair; for several a list of these for each, in the order asked.

        Raises:
            ValueError: no layer or one without a head; a ratio or layer of compression that cannot be; and as
                `FlaxLLMReranker.compute_score`.
        """
        return self._compute_score(
            sentence_pairs,
            show_progress_bar,
            batch_size=batch_size,
            query_max_length=query_max_length,
            max_length=max_length,
            cutoff_layers=cutoff_layers,
            compress_layers=_renamed(compress_layer, compress_layers),
            compress_ratio=compress_ratio,
            prompt=prompt,
            normalize=normalize,
        )

    def score(
        self,
        sentence_pairs: Pairs,
        batch_size: int | None = None,
        query_max_length: int | None = None,
        max_length: int | None = None,
        cutoff_layers: CutoffLayers = None,
        compress_layer: Sequence[int] | None = None,
        compress_layers: Sequence[int] | None = None,
        compress_ratio: int | None = None,
        prompt: str | None = None,
        normalize: bool | None = None,
        show_progress_bar: bool | None = None,
    ) -> RerankOutput:
        """As `compute_score`, with a dict from layer to float32 numpy scores, tokens and truncation of each pair,
        and counts (of tokens before compression)."""
        return self._score(
            sentence_pairs,
            show_progress_bar,
            batch_size=batch_size,
            query_max_length=query_max_length,
            max_length=max_length,
            cutoff_layers=cutoff_layers,
            compress_layers=_renamed(compress_layer, compress_layers),
            compress_ratio=compress_ratio,
            prompt=prompt,
            normalize=normalize,
        )

    def _resolve(
        self,
        batch_size: int | None = None,
        query_max_length: int | None = None,
        max_length: int | None = None,
        cutoff_layers: CutoffLayers = None,
        compress_layers: Sequence[int] | None = None,
        compress_ratio: int | None = None,
        prompt: str | None = None,
        normalize: bool | None = None,
    ) -> Call:
        asked = self._cutoff_layers(self.cutoff_layers if cutoff_layers is None else cutoff_layers)
        layers = tuple(sorted(set(asked)))
        at, ratio = self._compression(
            self.compress_layers if compress_layers is None else compress_layers,
            self.compress_ratio if compress_ratio is None else compress_ratio,
        )
        at = tuple(layer for layer in at if layer < layers[-1])
        readout = self.model.readout.at(asked, range(len(layers)) if self.head_index == "reference" else None)
        lengths = self._lengths(query_max_length, max_length)
        template = self._template(lengths, prompt)
        suffix_length = len(template.suffix)

        def options(pairs: TokenizedPairs, table: Sequence[int]) -> Callable[[int], Mapping[str, Any]]:
            sizes = compressed_sizes(pairs, table, suffix_length, ratio, times=len(at))
            return lambda length: {
                "readout": readout,
                "compression": Compression(tuple(zip(at, sizes[length], strict=True)), ratio, suffix_length),
            }

        return Call(
            template=template,
            lengths=lengths,
            batch_size=self._batch_size(batch_size),
            normalize=self.normalize if normalize is None else normalize,
            layers=asked,
            outputs=tuple(map(layers.index, asked)),
            options=options,
        )

    def _config_overrides(self) -> dict[str, Any]:
        # From the source's own config.json: a Flax checkpoint that was saved without the softcap must not lose it.
        given = self.source_config.get("attn_logit_softcapping", 50.0)
        return {"attention_softcap": None if self.attention_softcap == "reference" else given}

    def _compression(self, compress_layers: Sequence[int], ratio: int) -> tuple[tuple[int, ...], int]:
        """The layers before which to compress, ascending, and the ratio.

        Raises:
            ValueError: a ratio that there is not, or a layer outside the model.
        """
        if ratio not in RATIOS:
            raise ValueError(f"compress_ratio {ratio!r} is not one of {', '.join(map(str, RATIOS))}")
        if ratio == 1:
            return (), ratio
        depth = self.model.config.num_hidden_layers
        wrong = [layer for layer in compress_layers if not 0 <= layer < depth]
        if wrong:
            raise ValueError(f"compress_layers {wrong}: the model has layers 0 to {depth - 1}")
        return tuple(sorted(set(compress_layers) - {0})), ratio


def compressed_sizes(
    pairs: TokenizedPairs, table: Sequence[int], suffix_length: int, ratio: int, *, times: int
) -> dict[int, tuple[int, ...]]:
    """For each length of the table, the lengths after one, two, ... `times` compressions that fit all pairs that
    a step of this length may hold: those that are not longer. They are rounded up by less than a sixteenth of the
    length, so that other pairs seldom ask for other lengths, which would have to be compiled."""
    lengths, starts = pairs.lengths.astype(np.int64), pairs.passage_starts.astype(np.int64)
    sizes: dict[int, tuple[int, ...]] = dict.fromkeys(table, ())
    for _ in range(times):
        passages = np.maximum(lengths - starts - suffix_length, 0)
        lengths = lengths - passages + -(-passages // ratio)
        for length in table:
            fits = pairs.lengths <= length
            longest = int(lengths[fits].max()) if fits.any() else 1
            grid = max(1 << (length.bit_length() - 5), GRID)
            sizes[length] = (*sizes[length], min(-(-longest // grid) * grid, length))
    return sizes


def _renamed(compress_layer: Sequence[int] | None, compress_layers: Sequence[int] | None) -> Sequence[int] | None:
    if compress_layer is None:
        return compress_layers
    warnings.warn("compress_layer is the old name of compress_layers", DeprecationWarning, stacklevel=3)
    return compress_layer
