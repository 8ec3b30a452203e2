"""Jina's API, which vLLM speaks too: POST /v1/rerank."""

from uuid import uuid4

from flax_rerank.serving.apis.common import (
    DOCUMENTS,
    JSON,
    MODEL,
    TEXT,
    TOP_N_OR_0,
    Answer,
    Api,
    Asked,
    RequestError,
    flag,
)
from flax_rerank.serving.apis.vllm import refuse as refuse_as_vllm

FIELDS = {
    **{"model": MODEL, "query": TEXT, "documents": DOCUMENTS, "top_n": TOP_N_OR_0},
    **{"return_documents": flag(True), "use_activation": flag(True)},
}


def ask(fields: JSON) -> Asked:
    """What a request asks for."""
    texts = [each if isinstance(each, str) else each["text"] for each in fields["documents"]]
    if not texts:
        raise RequestError("empty", "documents must not be empty", field="documents")
    return Asked(
        [(fields["query"], text) for text in texts],
        fields["model"],
        fields["top_n"] or None,
        normalize=fields["use_activation"],
        documents=fields["return_documents"],
    )


def answer(asked: Asked, given: Answer) -> JSON:
    """The body of the answer."""
    results: list[JSON] = [{"index": i, "relevance_score": given.scores[i]} for i in given.ranking(asked.top_n)]
    if asked.documents:
        for result in results:
            result["document"] = {"text": asked.pairs[result["index"]][1]}
    total = sum(given.tokens)
    usage = {"prompt_tokens": total, "total_tokens": total}
    return {"id": f"rerank-{uuid4().hex}", "model": given.model, "usage": usage, "results": results}


def refuse(error: RequestError) -> tuple[int, JSON]:
    """Status and body of an error: vLLM's `error`, and Jina's `detail`."""
    status, body = refuse_as_vllm(error)
    return status, {**body, "detail": error.message}


API = Api(
    "jina",
    "Rerank as Jina's API and vLLM do",
    FIELDS,
    ask,
    answer,
    refuse,
    {"model": "MODEL", "query": "what is panda?", "documents": ["hi", "The giant panda is a bear."], "top_n": 1},
)
