"""Run the server until it is told to stop."""

import logging
import os
import socket
from collections.abc import Callable

import uvicorn

from flax_rerank.rerankers import AbsReranker
from flax_rerank.serving.app import Server
from flax_rerank.serving.options import ServeOptions

logger = logging.getLogger(__name__)

TOKEN = "FLAX_RERANK_API_KEY"
SPARE_SECONDS = 5


def serve(load: Callable[[], AbsReranker], model: str, options: ServeOptions) -> None:
    """Serve a reranker. SIGTERM and SIGINT end it once every accepted request is answered.

    Requests need the environment variable `FLAX_RERANK_API_KEY` as their bearer token, if it is set.

    Args:
        load: gives the reranker; called after the port is taken.
        model: its name.
        options: of the server.

    Raises:
        OSError: the address cannot be listened on.
        ValueError: a token that is empty; a reranker with several scores for each pair.
        And what ends the scoring, such as MemoryError.
    """
    token = os.environ.get(TOKEN)
    if token is not None and not token.strip():
        raise ValueError(f"{TOKEN} is empty; unset it, or give it a token")
    names = list(options.served_model_name) or list(dict.fromkeys([os.path.basename(model.rstrip("/")), model]))
    failures: list[BaseException] = []
    with socket.socket(socket.AF_INET6 if ":" in options.host else socket.AF_INET) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((options.host, options.port))
        except OSError as error:
            raise OSError(error.errno, f"cannot listen on {options.host}:{options.port}: {error.strerror}") from error

        def fail(error: BaseException) -> None:
            failures.append(error)
            http.should_exit = True

        server = Server(load(), names, options, token and token.strip(), fail)
        # Answers end by their deadline; only a client that does not read can last longer. Uvicorn's log has paths of
        # requests, which can hold texts.
        http = uvicorn.Server(
            uvicorn.Config(
                server.app,
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=int(options.timeout) + SPARE_SECONDS,
            )
        )
        listener.listen()  # from the message on, clients may come
        host, port = listener.getsockname()[:2]
        logger.info("%s at http://%s:%d, not ready yet", names[0], f"[{host}]" if ":" in host else host, port)
        http.run(sockets=[listener])
    if failures:
        raise failures[0]
