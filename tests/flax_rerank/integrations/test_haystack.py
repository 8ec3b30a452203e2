"""Haystack's ranker."""

import pytest

pytest.importorskip("haystack", reason="needs haystack-ai")

from haystack import Document, Pipeline

from flax_rerank.integrations.haystack import FlaxRanker


def test_a_pipeline_that_was_written_and_read_ranks_documents(search):
    pipeline = Pipeline()
    pipeline.add_component("ranker", FlaxRanker(search.folder, 2, {"max_length": 64, "devices": "cpu:0"}))
    pipeline = Pipeline.loads(pipeline.dumps(), allowed_modules=[FlaxRanker.__module__])
    documents = [Document(content=text, meta={"place": place}) for place, text in enumerate(search.passages)]
    found = pipeline.run({"ranker": {"query": search.query, "documents": documents}})["ranker"]["documents"]
    best = search.order[:2]
    assert [each.meta["place"] for each in found] == best
    assert [each.score for each in found] == pytest.approx([search.scores[place] for place in best], abs=1e-6)
    assert documents[0].score is None


def test_a_document_without_text_is_named(search):
    document = Document(id="picture")
    with pytest.raises(ValueError, match="the document picture has no text"):
        FlaxRanker(search.folder).run(search.query, [document])
