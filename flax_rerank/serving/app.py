"""The HTTP application: routes, limits, and from a request to its answer."""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from flax_rerank.rerankers import AbsReranker, FlaxListwiseReranker
from flax_rerank.serving.apis import cohere, jina, own, tei, vllm
from flax_rerank.serving.apis.common import Answer, Api, Asked, RequestError, read_fields
from flax_rerank.serving.batcher import Batcher, Scores
from flax_rerank.serving.metrics import Metrics
from flax_rerank.serving.openapi import as_page, describe
from flax_rerank.serving.options import ServeOptions

# Where a path serves two APIs, a request is one of the second if it has no field of this name.
TELLING_FIELD = "texts"
APIS: dict[str, tuple[Api, ...]] = {
    "/v2/rerank": (cohere.API,),
    "/v1/rerank": (jina.API,),
    "/rerank": (tei.API, jina.API),
    "/score": (vllm.API,),
    "/v1/score": (vllm.API,),
    "/rank": (own.API,),
}
CLIENT_CLOSED_REQUEST = 499  # nobody reads it; it is counted
METRICS_TYPE = "text/plain; version=0.0.4"
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'"
}


class Server:
    """Answers requests with the scores of one reranker.

    Args:
        reranker: the model.
        names: what requests may call it, the first of which answers name.
        options: of the server.
        token: what requests must have as their bearer token; None for no token.
        on_failure: called with what ends the scoring of batches.

    Attributes:
        app: the ASGI application.
        metrics: what it counts.
    """

    def __init__(
        self,
        reranker: AbsReranker,
        names: list[str],
        options: ServeOptions,
        token: str | None = None,
        on_failure: Callable[[BaseException], None] = lambda error: None,
    ) -> None:
        self._reranker, self._names, self._options, self._on_failure = reranker, names, options, on_failure
        self._token = None if token is None else token.encode()
        self.metrics = Metrics()
        self._batcher = Batcher(reranker, options, self.metrics)
        page = files("flax_rerank.serving").joinpath("page.html").read_text(encoding="utf-8")
        self.app = Starlette(
            routes=[
                *(Route(path, self._endpoint(apis), methods=["POST"]) for path, apis in APIS.items()),
                Route("/", lambda request: HTMLResponse(page, headers=PAGE_HEADERS)),
                Route("/docs", lambda request: HTMLResponse(as_page(APIS, names[0]), headers=PAGE_HEADERS)),
                Route("/openapi.json", lambda request: JSONResponse(describe(APIS, names[0]))),
                Route("/health", lambda request: PlainTextResponse("ok\n")),
                Route("/ready", self._ready),
                Route(
                    "/metrics", lambda request: Response(self.metrics.text(), media_type="text/plain; version=0.0.4")
                ),
            ],
            lifespan=self._lifespan,
        )

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        scoring = asyncio.create_task(self._batcher.run())

        def ended(task: "asyncio.Task[None]") -> None:
            if not task.cancelled() and (error := task.exception()) is not None:
                self._on_failure(error)

        scoring.add_done_callback(ended)
        yield
        scoring.cancel()

    def _ready(self, request: Request) -> Response:
        if self._batcher.ready:
            return PlainTextResponse("ready\n")
        return PlainTextResponse("not ready: shapes are being compiled\n", 503, {"Retry-After": "1"})

    def _endpoint(self, apis: tuple[Api, ...]) -> Callable[[Request], Any]:
        async def endpoint(request: Request) -> Response:
            start = time.perf_counter()
            api = apis[0]
            try:
                async with asyncio.timeout(self._options.timeout):
                    self._check_token(request)
                    body = _parse(await self._read(request))
                    if isinstance(body, dict) and TELLING_FIELD not in body:
                        api = apis[-1]
                    asked = api.ask(read_fields(body, api.fields))
                    self._check(asked, api)
                    scores = await self._score(request, asked)
                response = self._respond(api, asked, scores)
            except TimeoutError:
                late = RequestError("late", f"the request was not done in {self._options.timeout:g} s")
                response = _refusal(api, late)
            except RequestError as error:
                response = _refusal(api, error)
            except ClientDisconnect:
                response = Response(status_code=CLIENT_CLOSED_REQUEST)
            self.metrics.requests.labels(api.name, response.status_code).inc()
            self.metrics.seconds.labels(api.name).observe(time.perf_counter() - start)
            return response

        return endpoint

    def _check_token(self, request: Request) -> None:
        if self._token is None:
            return
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not secrets.compare_digest(given.strip().encode(), self._token):
            raise RequestError("token", "the bearer token is missing or wrong")

    async def _read(self, request: Request) -> bytes:
        most = self._options.max_body_bytes
        body = bytearray()
        async for chunk in request.stream():
            if len(body) <= most:  # the rest is read, since many a client reads no answer before it has sent all
                body += chunk
        if len(body) > most:
            raise RequestError("body", f"the body has more than {most} bytes")
        return bytes(body)

    def _check(self, asked: Asked, api: Api) -> None:
        if asked.model is not None and asked.model not in self._names:
            raise RequestError("model", api.unknown_model.format(asked.model), field="model")
        count, most = len(asked.pairs), self._options.max_documents
        if count > most:
            raise RequestError("many", f"{count} documents are more than {most}, the most that a request may have")

    async def _score(self, request: Request, asked: Asked) -> Scores:
        """The scores. When the client goes away or the deadline passes, the pairs are dropped."""
        scores = self._batcher.submit(asked.pairs)
        gone = asyncio.create_task(_until_gone(request))
        try:
            either: set[asyncio.Future[Any]] = {scores, gone}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not scores.done():
                raise ClientDisconnect
            return scores.result()
        finally:
            scores.cancel()
            gone.cancel()

    def _respond(self, api: Api, asked: Asked, given: Scores) -> Response:
        if not asked.truncate and given.truncated.any():
            number = int(np.argmax(given.truncated))
            raise RequestError("long", f"document {number} is too long, and truncate is false")
        scores = given.scores
        if asked.normalize and not isinstance(self._reranker, FlaxListwiseReranker):  # its scores are cosines
            style = self._reranker.spec.prompt_format
            scores = np.exp(-np.logaddexp(0.0, -(scores - style.normal_shift) * style.normal_scale))
        answer = Answer(self._names[0], scores.tolist(), given.tokens.tolist(), given.truncated.tolist())
        headers = {"X-Truncated-Documents": str(int(given.truncated.sum()))}
        return JSONResponse(api.answer(asked, answer), headers=headers)


def _parse(body: bytes) -> Any:
    try:
        return json.loads(body.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise RequestError("syntax", f"the body is not UTF-8: byte {error.start} is wrong") from error
    except (ValueError, RecursionError) as error:
        where = f": {error.msg} at line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise RequestError("syntax", f"the body is not JSON{where}") from error


def _refusal(api: Api, error: RequestError) -> Response:
    status, body = api.refuse(error)
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    if error.kind in ("late", "token"):  # the rest of the body may not have been read
        headers["Connection"] = "close"
    if error.kind == "token":
        headers["WWW-Authenticate"] = "Bearer"
    return PlainTextResponse(body, status, headers) if isinstance(body, str) else JSONResponse(body, status, headers)


async def _until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
