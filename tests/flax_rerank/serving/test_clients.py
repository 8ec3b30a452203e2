"""Clients as they are published, pointed at the server."""

import json
import shutil
import subprocess

import pytest

QUERY = "what is panda?"
PASSAGES = ["hi", "The giant panda is a bear species.", "pandas"]
# What these packages warn of themselves.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::ResourceWarning")


@pytest.fixture(scope="module")
def expected(small):
    """The indices and the scores of the two best passages."""
    ranked = small.rank(QUERY, PASSAGES, top_k=2, return_documents=False, normalize=True)
    return [(result["corpus_id"], pytest.approx(result["score"], abs=1e-6)) for result in ranked]


def test_cohere(server, expected):
    cohere = pytest.importorskip("cohere", reason="cohere is not installed")
    client = cohere.ClientV2(api_key=server.token, base_url=server.url)
    response = client.rerank(model="small", query=QUERY, documents=PASSAGES, top_n=2)
    assert [(result.index, result.relevance_score) for result in response.results] == expected
    with pytest.raises(cohere.errors.NotFoundError, match="model 'nope' not found"):
        client.rerank(model="nope", query=QUERY, documents=PASSAGES)
    with pytest.raises(cohere.errors.UnauthorizedError, match="invalid api token"):
        cohere.ClientV2(api_key="wrong", base_url=server.url).rerank(model="small", query=QUERY, documents=PASSAGES)


def test_langchain_cohere(server, expected):
    reason = "langchain-cohere is not installed"
    langchain_cohere = pytest.importorskip("langchain_cohere", reason=reason)
    client = langchain_cohere.CohereRerank(model="small", cohere_api_key=server.token, base_url=server.url, top_n=2)
    documents = client.compress_documents(
        [pytest.importorskip("langchain_core.documents").Document(text) for text in PASSAGES], QUERY
    )
    got = [(PASSAGES.index(each.page_content), each.metadata["relevance_score"]) for each in documents]
    assert got == expected


def test_llama_index_tei(server, expected):
    reason = "llama-index-postprocessor-tei-rerank is not installed"
    tei = pytest.importorskip("llama_index.postprocessor.tei_rerank", reason=reason)
    schema = pytest.importorskip("llama_index.core.schema", reason=reason)
    client = tei.TextEmbeddingInference(top_n=2, base_url=server.url, auth_token=f"Bearer {server.token}")
    nodes = [schema.NodeWithScore(node=schema.TextNode(text=text)) for text in PASSAGES]
    ranked = client.postprocess_nodes(nodes, query_str=QUERY)
    assert [(PASSAGES.index(node.node.text), node.score) for node in ranked] == expected


def test_curl(server, expected):
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    body = json.dumps({"query": QUERY, "documents": PASSAGES, "top_n": 2})
    command = ["curl", "-sf", f"{server.url}/v1/rerank", "-d", body, "-H", f"Authorization: Bearer {server.token}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert [(each["index"], each["relevance_score"]) for each in json.loads(done.stdout)["results"]] == expected
