"""FlaxLLMReranker: the logit of `Yes` of a causal language model (FlagEmbedding's FlagLLMReranker)."""

from typing import Any

from flax_rerank.rerankers.base import Call, Pairs, RerankOutput
from flax_rerank.rerankers.decoder import DecoderReranker, token_of_yes
from flax_rerank.sharding import DEFAULT_RULES, Devices, MeshShape, ShardingRules


class FlaxLLMReranker(DecoderReranker):
    """Scores a pair by the logit of `Yes` after the prompt: bge-reranker-v2-gemma and other language models.

    Of the model's head only the row of `Yes` is read and multiplied. Arguments have the names, defaults and
    meanings of FlagEmbedding's FlagLLMReranker; see `AbsReranker`, and

    Args:
        peft_path: a LoRA adapter (folder or hub name) to merge into the weights.
        prompt: the question put after the passage.
    """

    model_class = "decoder-only-base"
    default_prompt = (
        "Given a query A and a passage B, determine whether the passage contains an answer to the query by "
        "providing a prediction of either 'Yes' or 'No'."
    )

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

    def compute_score(
        self,
        sentence_pairs: Pairs,
        batch_size: int | None = None,
        query_max_length: int | None = None,
        max_length: int | None = None,
        prompt: str | None = None,
        normalize: bool | None = None,
        use_dataloader: bool = False,
        num_workers: int | None = None,
        show_progress_bar: bool | None = None,
    ) -> list[float]:
        """Score pairs of query and passage.

        Args:
            sentence_pairs: one pair of strings, or a sequence of pairs.
            batch_size, query_max_length, max_length, prompt, normalize, show_progress_bar: instead of the
                constructor's values, for this call.
            use_dataloader, num_workers: how FlagEmbedding loads batches; nothing to choose here.

        Returns:
            One float per pair, in order; logits, or their sigmoids with `normalize`. Always a list.

        Raises:
            TypeError: a pair that is not two strings, named by its index.
            ValueError: `max_length` above the model's positions; a pair that cannot be encoded or has no
                room for its passage, named by its index.
            FloatingPointError: a score is not finite.
        """
        return self._compute_score(
            sentence_pairs,
            show_progress_bar,
            batch_size=batch_size,
            query_max_length=query_max_length,
            max_length=max_length,
            prompt=prompt,
            normalize=normalize,
        )

    def score(
        self,
        sentence_pairs: Pairs,
        batch_size: int | None = None,
        query_max_length: int | None = None,
        max_length: int | None = None,
        prompt: str | None = None,
        normalize: bool | None = None,
        show_progress_bar: bool | None = None,
    ) -> RerankOutput:
        """As `compute_score`, with float32 numpy scores, tokens and truncation of each pair, and counts."""
        return self._score(
            sentence_pairs,
            show_progress_bar,
            batch_size=batch_size,
            query_max_length=query_max_length,
            max_length=max_length,
            prompt=prompt,
            normalize=normalize,
        )

    def _resolve(
        self,
        batch_size: int | None = None,
        query_max_length: int | None = None,
        max_length: int | None = None,
        prompt: str | None = None,
        normalize: bool | None = None,
    ) -> Call:
        lengths = self._lengths(query_max_length, max_length)
        return Call(
            template=self._template(lengths, prompt),
            lengths=lengths,
            batch_size=self._batch_size(batch_size),
            normalize=self.normalize if normalize is None else normalize,
            options=lambda pairs, table: lambda length: {"readout": self.model.readout},
        )

    def _config_overrides(self) -> dict[str, Any]:
        return {"tokens": (token_of_yes(self.tokenizer),)}

    def _prefix(self) -> tuple[int, ...]:
        bos = self.tokenizer.bos_token_id
        return () if bos is None or bos == self.tokenizer.pad_token_id else (bos,)
