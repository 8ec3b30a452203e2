"""LlamaIndex: a node postprocessor."""

from llama_index.core.bridge.pydantic import Field
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle

from flax_rerank.rerankers import AbsReranker


class FlaxRerankPostprocessor(BaseNodePostprocessor):
    """Keeps the nodes with the best scores. A node's text is the one that LlamaIndex embeds, with its metadata.

    Attributes:
        reranker: what scores.
        top_n: how many nodes are kept; None for all.
    """

    reranker: AbsReranker = Field(exclude=True)
    top_n: int | None = Field(default=3, ge=1)

    @classmethod
    def class_name(cls) -> str:
        return "FlaxRerankPostprocessor"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        if query_bundle is None:
            raise ValueError("there is no query: give query_str or query_bundle")
        texts = [each.node.get_content(metadata_mode=MetadataMode.EMBED) for each in nodes]
        ranked = self.reranker.rank(query_bundle.query_str, texts, self.top_n, False)
        return [NodeWithScore(node=nodes[each["corpus_id"]].node, score=each["score"]) for each in ranked]
