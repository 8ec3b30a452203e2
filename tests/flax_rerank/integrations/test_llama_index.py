"""LlamaIndex's node postprocessor."""

import pytest

pytest.importorskip("llama_index.core", reason="needs llama-index-core")

from llama_index.core.schema import NodeWithScore, TextNode

from flax_rerank.integrations.llama_index import FlaxRerankPostprocessor


def test_the_best_nodes_are_kept_with_their_scores(search):
    nodes = [NodeWithScore(node=TextNode(text=text), score=0.5) for text in search.passages]
    found = FlaxRerankPostprocessor(reranker=search.model, top_n=2).postprocess_nodes(nodes, query_str=search.query)
    best = search.order[:2]
    assert [each.node.text for each in found] == [search.passages[place] for place in best]
    assert [each.score for each in found] == pytest.approx([search.scores[place] for place in best], abs=1e-6)


def test_the_text_has_the_metadata_that_llama_index_embeds(search):
    node = TextNode(
        text="hi", metadata={"title": "bears"}, metadata_template="{value}", text_template="{metadata_str} {content}"
    )
    (found,) = FlaxRerankPostprocessor(reranker=search.model).postprocess_nodes(
        [NodeWithScore(node=node)], query_str=search.query
    )
    assert found.score == pytest.approx(search.model.compute_score((search.query, "bears hi"))[0], abs=1e-6)
    with pytest.raises(ValueError, match="there is no query: give query_str or query_bundle"):
        FlaxRerankPostprocessor(reranker=search.model).postprocess_nodes([])
