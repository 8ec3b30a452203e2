"""Each API: its answers, its errors."""

import math

import pytest

QUERY = "what is panda?"
PASSAGES = ["hi", "", "The giant panda is a bear species.", "panda " * 100]


@pytest.fixture(scope="module")
def logits(small):
    return small.compute_score([(QUERY, passage) for passage in PASSAGES])


def sigmoid(logit):
    return 1 / (1 + math.exp(-logit))


def best_first(scores):
    return sorted(range(len(scores)), key=lambda index: -scores[index])


def test_cohere(server, logits):
    reply = server.post("/v2/rerank", {"model": "small", "query": QUERY, "documents": PASSAGES, "top_n": 3})
    assert (reply.status, set(reply.json)) == (200, {"id", "results", "meta"})
    assert [result["index"] for result in reply.json["results"]] == best_first(logits)[:3]
    for result in reply.json["results"]:
        assert result == {
            "index": result["index"],
            "relevance_score": pytest.approx(sigmoid(logits[result["index"]]), abs=1e-6),
        }
    assert reply.json["meta"]["warnings"] == ["1 of 4 documents were too long and were truncated"]


@pytest.mark.parametrize("path", ["/v1/rerank", "/rerank"])
def test_jina_and_vllm(server, logits, path):
    documents = [{"text": PASSAGES[0]}, *PASSAGES[1:]]
    reply = server.post(path, {"query": QUERY, "documents": documents, "top_n": 0})
    assert (reply.status, set(reply.json), reply.json["model"]) == (200, {"id", "model", "usage", "results"}, "small")
    for result, index in zip(reply.json["results"], best_first(logits), strict=True):
        assert (result["index"], result["document"]) == (index, {"text": PASSAGES[index]})
        assert result["relevance_score"] == pytest.approx(sigmoid(logits[index]), abs=1e-6)
    without = server.post(path, {"query": QUERY, "documents": PASSAGES, "return_documents": False, "top_n": None})
    assert set(without.json["results"][0]) == {"index", "relevance_score"}


def test_tei(server, logits):
    reply = server.post("/rerank", {"query": QUERY, "texts": PASSAGES, "raw_scores": True, "return_text": True})
    assert reply.status == 200
    assert reply.json == [
        {"index": index, "score": pytest.approx(logits[index], abs=1e-5), "text": PASSAGES[index]}
        for index in best_first(logits)
    ]


def test_vllm_scores_pairs_in_their_order(server, logits):
    reply = server.post("/score", {"text_1": QUERY, "text_2": PASSAGES, "use_activation": False})
    assert (reply.status, reply.json["object"]) == (200, "list")
    assert reply.json["data"] == [
        {"index": index, "object": "score", "score": pytest.approx(logit, abs=1e-5)}
        for index, logit in enumerate(logits)
    ]
    paired = server.post("/score", {"text_1": [QUERY, "hi"], "text_2": [PASSAGES[0], PASSAGES[2]]})
    assert paired.json["data"][0]["score"] == pytest.approx(sigmoid(logits[0]), abs=1e-6)


def test_own_tells_tokens_and_truncation(server, small):
    reply = server.post("/rank", {"query": QUERY, "passages": PASSAGES})
    expected = small.score([(QUERY, passage) for passage in PASSAGES])
    for result in reply.json["results"]:
        assert result["tokens"] == expected.tokens[result["index"]]
        assert result["truncated"] is (result["index"] == 3)
    assert reply.headers["X-Truncated-Documents"] == "1"


COHERE = {"model": "small", "query": QUERY, "documents": ["hi"]}
TEI = {"query": QUERY, "texts": ["hi"]}


@pytest.mark.parametrize(
    ("path", "body", "status", "told"),
    [
        ("/v2/rerank", {**COHERE, "documents": []}, 400, "invalid request: list of documents must not be empty"),
        ("/v2/rerank", {**COHERE, "query": " "}, 400,
         "invalid request: query must not be empty or be only whitespace"),
        ("/v2/rerank", {**COHERE, "model": None}, 400, "a model parameter is required for this endpoint."),
        ("/v2/rerank", {**COHERE, "model": "nope"}, 404, "model 'nope' not found, make sure the correct model ID"),
        ("/v2/rerank", {**COHERE, "top_n": -1}, 400, "invalid request: top_n must be an integer of at least 1"),
        ("/v2/rerank", {**COHERE, "top_n": True}, 400, "invalid request: top_n must be an integer of at least 1"),
        ("/v2/rerank", {**COHERE, "documents": "hi"}, 400, "invalid request: documents must be a list of strings"),
        ("/v2/rerank", {**COHERE, "documents": ["hi"] * 41}, 400, "invalid request: 41 documents are more than 40"),
        ("/v2/rerank", b'{"query": "\xff"}', 400, "invalid request: the body is not UTF-8: byte 11 is wrong"),
        ("/v2/rerank", b"[" * 9000, 400, "invalid request: the body is not JSON"),
        ("/v2/rerank", b"9" * 9000, 400, "invalid request: the body is not JSON"),
        ("/v2/rerank", b'{"model": "small", "query": "q", "documents": ["hi", "\\ud800"]}', 400,
         "invalid request: document 1: its passage cannot be encoded"),
        ("/v2/rerank", b"x" * 10_001, 413, "the body has more than 10000 bytes"),
    ],
)  # fmt: skip
def test_cohere_errors(server, path, body, status, told):
    reply = server.post(path, body)
    assert (reply.status, set(reply.json)) == (status, {"id", "message"})
    assert reply.json["message"].startswith(told)


@pytest.mark.parametrize(
    ("body", "status", "kind", "field", "told"),
    [
        ({"query": QUERY, "documents": []}, 400, "BadRequestError", "documents", "documents must not be empty"),
        ({"query": QUERY, "documents": ["hi"], "top_n": -1}, 400, "BadRequestError", "top_n", "top_n must be"),
        ({"query": QUERY}, 400, "BadRequestError", "documents", "documents is missing"),
        ({"query": 5, "documents": ["hi"]}, 400, "BadRequestError", "query", "query must be a string"),
        ({"query": QUERY, "documents": ["hi"], "model": "x"}, 404, "NotFoundError", "model",
         "The model `x` does not exist."),
    ],
)  # fmt: skip
def test_jina_and_vllm_errors(server, body, status, kind, field, told):
    reply = server.post("/v1/rerank", body)
    assert reply.status == status
    assert reply.json["detail"].startswith(told)
    error = {"message": reply.json["detail"], "type": kind, "param": field, "code": status}
    assert reply.json["error"] == error


def test_vllm_wants_as_many_texts_on_both_sides(server):
    reply = server.post("/score", {"text_1": ["a", "b"], "text_2": ["c", "d", "e"]})
    assert (reply.status, reply.json["error"]["param"]) == (400, "text_1")


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        ({**TEI, "texts": []}, 400, {"error": "`texts` cannot be empty", "error_type": "Empty"}),
        ({**TEI, "texts": ["hi", PASSAGES[3]], "truncate": False}, 413,
         {"error": "document 1 is too long, and truncate is false", "error_type": "Validation"}),
        ({**TEI, "texts": ["hi"] * 41}, 413,
         {"error": "41 documents are more than 40, the most that a request may have", "error_type": "Validation"}),
        ({**TEI, "query": 5}, 422,
         "Failed to deserialize the JSON body into the target type: query must be a string"),
        (b"{", 400, "Failed to parse the request body as JSON: the body is not JSON: Expecting property name "
         "enclosed in double quotes at line 1"),
    ],
)  # fmt: skip
def test_tei_errors(server, body, status, told):
    reply = server.post("/rerank", body)
    assert (reply.status, reply.text if isinstance(told, str) else reply.json) == (status, told)


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("/v2/rerank", "invalid api token"),
        ("/v1/rerank", "the bearer token is missing or wrong"),
        ("/rerank", ""),
        ("/score", '{"error":"Unauthorized"}'),
        ("/rank", '{"error":"the bearer token is missing or wrong"}'),
    ],
)
@pytest.mark.parametrize("token", [None, "wrong", "s3cre", "\xe9"])
def test_a_token_that_is_missing_or_wrong(server, path, told, token):
    reply = server.post(path, COHERE, token=token)
    assert (reply.status, reply.headers["WWW-Authenticate"]) == (401, "Bearer")
    assert told in reply.text


def test_other_pages(server):
    assert server.get("/health").status == 200
    described = server.get("/openapi.json").json
    assert described["paths"]["/v2/rerank"]["post"]["requestBody"]["content"]["application/json"]["schema"][
        "required"
    ] == ["query", "documents"]
    page = server.get("/docs").text
    assert all(f"POST {path}" in page for path in described["paths"])
    assert server.get("/v2/rerank").status == 405
    assert server.get("/nothing").status == 404
