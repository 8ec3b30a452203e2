"""A server of a small model, in a thread."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from serving_client import Client

TOKEN = "s3cret"


@pytest.fixture(autouse=True, scope="package")
def _extra():
    for package in ("starlette", "uvicorn", "prometheus_client"):
        pytest.importorskip(package, reason="the extra serve is not installed")


@contextmanager
def running(reranker, token=None, **options) -> Iterator[Client]:
    """A server in a thread, and a client for it."""
    import uvicorn

    from flax_rerank.serving.app import Server
    from flax_rerank.serving.options import ServeOptions

    server = Server(reranker, ["small", "other-name"], ServeOptions(**options), token)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        http = uvicorn.Server(uvicorn.Config(server.app, log_config=None, access_log=False))
        thread = threading.Thread(target=http.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield Client(f"http://127.0.0.1:{listener.getsockname()[1]}", token)
        finally:
            http.should_exit = True
            thread.join(30)
            assert not thread.is_alive()


@pytest.fixture(scope="module")
def small(reranker):
    """A model of few shapes: its longest pairs have 35 tokens."""
    return reranker("encoder-bert", {"max_length": 32})


@pytest.fixture(scope="module")
def server(small) -> Iterator[Client]:
    with running(small, TOKEN, max_documents=40, max_body_bytes=10_000) as client:
        client.wait_until_ready()
        yield client


@pytest.fixture
def serve(small):
    """`with serve(**options) as client`: a server of its own."""
    return lambda **options: running(options.pop("reranker", small), **options)
