"""LayerWiseFlaxLLMReranker: heads after many layers (FlagEmbedding's LayerWiseFlagLLMReranker)."""

from collections.abc import Sequence

from flax_rerank.rerankers.base import Call, Pairs, RerankOutput
from flax_rerank.rerankers.decoder import DecoderReranker
from flax_rerank.rerankers.llm import FlaxLLMReranker
from flax_rerank.sharding import DEFAULT_RULES, Devices, MeshShape, ShardingRules

CutoffLayers = int | Sequence[int] | None


class LayerWiseFlaxLLMReranker(DecoderReranker):
    """Scores a pair after any of the upper layers; nothing beyond the highest one asked is computed.

    For bge-reranker-v2-minicpm-layerwise. Arguments have the names, defaults and meanings of FlagEmbedding's
    LayerWiseFlagLLMReranker; see `AbsReranker`, and

    Args:
        peft_path: a LoRA adapter (folder or hub name) to merge into the weights.
        cutoff_layers: the layer or layers to score after, counted from 1; by default the last one. Each score is
            that of its own layer and head, in the order asked.
        prompt: the question put after the passage.
    """

    model_class = "decoder-only-layerwise"
    default_prompt = FlaxLLMReranker.default_prompt

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
        prompt: str | None = None,
        batch_size: int = 128,
        query_max_length: int | None = None,
        max_length: int = 512,
        normalize: bool = False,
        *,
        dtype: str | None = None,
        mesh: MeshShape = None,
        sharding_rules: ShardingRules = DEFAULT_RULES,
        show_progress_bar: bool | None = None,
        passage_max_length: int | None = None,
    ) -> None:
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
        self._cutoff_layers(cutoff_layers)

    def compute_score(
        self,
        sentence_pairs: Pairs,
        batch_size: int | None = None,
        query_max_length: int | None = None,
        max_length: int | None = None,
        cutoff_layers: CutoffLayers = None,
        prompt: str | None = None,
        normalize: bool | None = None,
        use_dataloader: bool = False,
        num_workers: int | None = None,
        show_progress_bar: bool | None = None,
    ) -> list[float] | list[list[float]]:
        """Score pairs of query and passage.

        Args:
            sentence_pairs: one pair of strings, or a sequence of pairs.
            batch_size, query_max_length, max_length, cutoff_layers, prompt, normalize, show_progress_bar: instead
                of the constructor's values, for this call.
            use_dataloader, num_workers: how FlagEmbedding loads batches; nothing to choose here.

        Returns:
            For one layer a float per pair; for several a list of these for each, in the order asked.

        Raises:
            ValueError: no layer, or one without a head; and as `FlaxLLMReranker.compute_score`.
        """
        return self._compute_score(
            sentence_pairs,
            show_progress_bar,
            batch_size=batch_size,
            query_max_length=query_max_length,
            max_length=max_length,
            cutoff_layers=cutoff_layers,
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
        prompt: str | None = None,
        normalize: bool | None = None,
        show_progress_bar: bool | None = None,
    ) -> RerankOutput:
        """As `compute_score`, with a dict from layer to float32 numpy scores, tokens and truncation of each pair,
        and counts."""
        return self._score(
            sentence_pairs,
            show_progress_bar,
            batch_size=batch_size,
            query_max_length=query_max_length,
            max_length=max_length,
            cutoff_layers=cutoff_layers,
            prompt=prompt,
            normalize=normalize,
        )

    def _resolve(
        self,
        batch_size: int | None = None,
        query_max_length: int | None = None,
        max_length: int | None = None,
        cutoff_layers: CutoffLayers = None,
        prompt: str | None = None,
        normalize: bool | None = None,
    ) -> Call:
        asked = self._cutoff_layers(self.cutoff_layers if cutoff_layers is None else cutoff_layers)
        readout = self.model.readout.at(asked)
        lengths = self._lengths(query_max_length, max_length)
        return Call(
            template=self._template(lengths, prompt),
            lengths=lengths,
            batch_size=self._batch_size(batch_size),
            normalize=self.normalize if normalize is None else normalize,
            layers=asked,
            outputs=tuple(map(readout.layers.index, asked)),
            options=lambda pairs, table: lambda length: {"readout": readout},
        )
