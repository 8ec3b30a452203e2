"""vLLM's API for pairs: POST /score."""

import time
from uuid import uuid4

from flax_rerank.serving.apis.common import (
    JSON,
    MODEL,
    STATUS,
    TEXT_OR_TEXTS,
    Answer,
    Api,
    Asked,
    RequestError,
    flag,
)

FIELDS = {"model": MODEL, "text_1": TEXT_OR_TEXTS, "text_2": TEXT_OR_TEXTS, "use_activation": flag(True)}
TYPES = {"model": "NotFoundError", "backend": "InternalServerError"}


def ask(fields: JSON) -> Asked:
    """What a request asks for."""
    queries, passages = ([each] if isinstance(each, str) else each for each in (fields["text_1"], fields["text_2"]))
    if not queries or not passages:
        raise RequestError("empty", "text_1 and text_2 must not be empty", field="text_1" if passages else "text_2")
    if len(queries) == 1:
        queries = queries * len(passages)
    if len(queries) != len(passages):
        message = f"text_1 has {len(queries)} texts and text_2 {len(passages)}: give as many, or one text_1"
        raise RequestError("invalid", message, field="text_1")
    return Asked(list(zip(queries, passages, strict=True)), fields["model"], normalize=fields["use_activation"])


def answer(asked: Asked, given: Answer) -> JSON:
    """The body of the answer."""
    total = sum(given.tokens)
    return {
        "id": f"score-{uuid4().hex}",
        "object": "list",
        "created": int(time.time()),
        "model": given.model,
        "data": [{"index": i, "object": "score", "score": score} for i, score in enumerate(given.scores)],
        "usage": {"prompt_tokens": total, "total_tokens": total, "completion_tokens": 0},
    }


def refuse(error: RequestError) -> tuple[int, JSON]:
    """Status and body of an error."""
    status = STATUS[error.kind]
    if error.kind == "token":
        return status, {"error": "Unauthorized"}
    kind = TYPES.get(error.kind, "BadRequestError" if status == 400 else "ServiceUnavailableError")
    return status, {"error": {"message": error.message, "type": kind, "param": error.field, "code": status}}


API = Api(
    "vllm",
    "Score pairs as vLLM does",
    FIELDS,
    ask,
    answer,
    refuse,
    {"model": "MODEL", "text_1": "what is panda?", "text_2": ["hi", "The giant panda is a bear."]},
)
