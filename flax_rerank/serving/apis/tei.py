"""The API of Hugging Face's text-embeddings-inference: POST /rerank."""

from flax_rerank.serving.apis.common import (
    JSON,
    STATUS,
    TEXT,
    TEXTS,
    Answer,
    Api,
    Asked,
    Kind,
    RequestError,
    flag,
)

FIELDS = {
    **{"query": TEXT, "texts": TEXTS, "raw_scores": flag(False), "return_text": flag(False)},
    "truncate": flag(True),
}
# Its own names of errors, and their statuses, where they are others than elsewhere.
TYPES: dict[Kind, tuple[int, str]] = {
    "empty": (400, "Empty"),
    "many": (413, "Validation"),
    "long": (413, "Validation"),
    "full": (429, "Overloaded"),
    "starting": (503, "Unhealthy"),
    "backend": (424, "Backend"),
}


def ask(fields: JSON) -> Asked:
    """What a request asks for."""
    if not fields["texts"]:
        raise RequestError("empty", "`texts` cannot be empty", field="texts")
    return Asked(
        [(fields["query"], text) for text in fields["texts"]],
        normalize=not fields["raw_scores"],
        documents=fields["return_text"],
        truncate=fields["truncate"],
    )


def answer(asked: Asked, given: Answer) -> list[JSON]:
    """The body of the answer."""
    results: list[JSON] = [{"index": index, "score": given.scores[index]} for index in given.ranking(None)]
    if asked.documents:
        for result in results:
            result["text"] = asked.pairs[result["index"]][1]
    return results


def refuse(error: RequestError) -> tuple[int, JSON | str]:
    """Status and body of an error. What its web framework finds is plain text."""
    if error.kind == "token":
        return 401, ""
    if error.kind == "syntax":
        return 400, f"Failed to parse the request body as JSON: {error.message}"
    if error.kind == "invalid":
        return 422, f"Failed to deserialize the JSON body into the target type: {error.message}"
    status, kind = TYPES.get(error.kind, (STATUS[error.kind], "Validation"))
    return status, {"error": error.message, "error_type": kind}


API = Api(
    "tei",
    "Rerank as text-embeddings-inference does",
    FIELDS,
    ask,
    answer,
    refuse,
    {"query": "what is panda?", "texts": ["hi", "The giant panda is a bear."]},
)
