"""FlaxReranker: encoder-only cross-encoders (FlagEmbedding's FlagReranker)."""

from flax_rerank.pairs import Template
from flax_rerank.rerankers.base import AbsReranker, Call, Lengths, Pairs, RerankOutput
from flax_rerank.sharding import DEFAULT_RULES, Devices, MeshShape, ShardingRules
from flax_rerank.tokenizer import Tokenizer


class FlaxReranker(AbsReranker):
    """Scores pairs with an encoder and a classification head: bge-reranker-base, -large, -v2-m3 and others.

    Arguments have the names, defaults and meanings of FlagEmbedding's FlagReranker; see `AbsReranker`.
    """

    model_class = "encoder-only-base"

    def __init__(
        self,
        model_name_or_path: str,
        use_fp16: bool = False,
        query_instruction_for_rerank: str | None = None,
        query_instruction_format: str = "{}{}",
        passage_instruction_for_rerank: str | None = None,
        passage_instruction_format: str = "{}{}",
        trust_remote_code: bool = False,
        cache_dir: str | None = None,
        devices: Devices = None,
        batch_size: int = 128,
        query_max_length: int | None = None,
        max_length: int = 512,
        normalize: bool = False,
        *,
        use_bf16: bool = False,
        dtype: str | None = None,
        mesh: MeshShape = None,
        sharding_rules: ShardingRules = DEFAULT_RULES,
        show_progress_bar: bool | None = None,
        passage_max_length: int | None = None,
    ) -> None:
        super().__init__(
            model_name_or_path,
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
        normalize: bool | None = None,
        show_progress_bar: bool | None = None,
    ) -> list[float]:
        """Score pairs of query and passage.

        Args:
            sentence_pairs: one pair of strings, or a sequence of pairs.
            batch_size, query_max_length, max_length, normalize, show_progress_bar: instead of the
                constructor's values, for this call.

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
            normalize=normalize,
        )

    def score(
        self,
        sentence_pairs: Pairs,
        batch_size: int | None = None,
        query_max_length: int | None = None,
        max_length: int | None = None,
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
            normalize=normalize,
        )

    def _resolve(
        self,
        batch_size: int | None = None,
        query_max_length: int | None = None,
        max_length: int | None = None,
        normalize: bool | None = None,
    ) -> Call:
        lengths = self._lengths(query_max_length, max_length)
        return Call(
            template=self._template(lengths),
            lengths=lengths,
            batch_size=self._batch_size(batch_size),
            normalize=self.normalize if normalize is None else normalize,
            options=lambda pairs, table: lambda length: {"readout": self.model.readout},
        )

    def _template(self, lengths: Lengths) -> Template:
        positions = self.model.config.max_length
        if lengths.max_length > positions:
            raise ValueError(f"max_length is {lengths.max_length}, the model has {positions} positions")
        prefix, middle, suffix = special_tokens_of_a_pair(self.tokenizer)
        return Template(
            prefix=prefix,
            middle=middle,
            suffix=suffix,
            capacity=lengths.max_length - len(prefix) - len(middle) - len(suffix),
            query_max_length=lengths.query_max_length,
            passage_max_length=lengths.max_length,
        )


def special_tokens_of_a_pair(
    tokenizer: Tokenizer,
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """The special tokens that a tokenizer puts before, between and after two texts.

    Raises:
        ValueError: it puts none.
    """
    pair = tokenizer.backend.encode("a", "b")
    where = pair.sequence_ids
    if 0 not in where or 1 not in where:
        raise ValueError("the tokenizer has no template for a pair of texts")
    query = [position for position, sequence in enumerate(where) if sequence == 0]
    passage = [position for position, sequence in enumerate(where) if sequence == 1]
    parts = pair.ids[: query[0]], pair.ids[query[-1] + 1 : passage[0]], pair.ids[passage[-1] + 1 :]
    if not parts[1]:
        raise ValueError("the tokenizer puts no separator between two texts: it is not one of a cross-encoder")
    return tuple(parts[0]), tuple(parts[1]), tuple(parts[2])
