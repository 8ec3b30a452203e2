"""This server's own API, which says what became of each passage: POST /rank."""

from flax_rerank.serving.apis.common import (
    JSON,
    STATUS,
    TEXT,
    TEXTS,
    TOP_N,
    Answer,
    Api,
    Asked,
    RequestError,
    flag,
)

FIELDS = {"query": TEXT, "passages": TEXTS, "top_k": TOP_N, "normalize": flag(True)}


def ask(fields: JSON) -> Asked:
    """What a request asks for."""
    if not fields["passages"]:
        raise RequestError("empty", "passages must not be empty", field="passages")
    pairs = [(fields["query"], passage) for passage in fields["passages"]]
    return Asked(pairs, top_n=fields["top_k"], normalize=fields["normalize"])


def answer(asked: Asked, given: Answer) -> JSON:
    """The body of the answer."""
    results = [
        {"index": i, "score": given.scores[i], "tokens": given.tokens[i], "truncated": given.truncated[i]}
        for i in given.ranking(asked.top_n)
    ]
    return {"model": given.model, "results": results}


def refuse(error: RequestError) -> tuple[int, JSON]:
    """Status and body of an error."""
    return STATUS[error.kind], {"error": error.message}


API = Api(
    "own",
    "Rank passages, with the tokens and the truncation of each",
    FIELDS,
    ask,
    answer,
    refuse,
    {"query": "what is panda?", "passages": ["hi", "The giant panda is a bear."]},
)
