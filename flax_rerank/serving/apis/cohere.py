"""Cohere's API, version 2: POST /v2/rerank."""

from uuid import uuid4

from flax_rerank.serving.apis.common import (
    JSON,
    MODEL,
    STATUS,
    TEXT,
    TEXTS,
    TOP_N,
    Answer,
    Api,
    Asked,
    RequestError,
)

FIELDS = {"model": MODEL, "query": TEXT, "documents": TEXTS, "top_n": TOP_N}


def ask(fields: JSON) -> Asked:
    """What a request asks for."""
    if fields["model"] is None:
        raise RequestError("invalid", "a model parameter is required for this endpoint.", field="model")
    if not fields["query"].strip():
        raise RequestError("invalid", "query must not be empty or be only whitespace", field="query")
    if not fields["documents"]:
        raise RequestError("empty", "list of documents must not be empty", field="documents")
    pairs = [(fields["query"], document) for document in fields["documents"]]
    return Asked(pairs, fields["model"], fields["top_n"])


def answer(asked: Asked, given: Answer) -> JSON:
    """The body of the answer."""
    meta: JSON = {"api_version": {"version": "2"}, "billed_units": {"search_units": 1}}
    if cut := sum(given.truncated):
        meta["warnings"] = [f"{cut} of {len(given.scores)} documents were too long and were truncated"]
    results = [{"index": i, "relevance_score": given.scores[i]} for i in given.ranking(asked.top_n)]
    return {"id": str(uuid4()), "results": results, "meta": meta}


def refuse(error: RequestError) -> tuple[int, JSON]:
    """Status and body of an error."""
    prefix = "invalid request: " if STATUS[error.kind] == 400 and error.field != "model" else ""
    message = "invalid api token" if error.kind == "token" else prefix + error.message
    return STATUS[error.kind], {"id": str(uuid4()), "message": message}


API = Api(
    "cohere",
    "Rerank as Cohere's API version 2 does",
    FIELDS,
    ask,
    answer,
    refuse,
    {"model": "MODEL", "query": "what is panda?", "documents": ["hi", "The giant panda is a bear."], "top_n": 1},
    "model '{}' not found, make sure the correct model ID was used and that you have access to the model.",
)
