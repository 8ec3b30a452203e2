"""The options of the server, apart from the model and its settings."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

POSITIVE = ("timeout", "batch_pairs", "max_queue", "max_documents", "max_body_bytes")


def _option(text: str, default: Any, metavar: str | None = None) -> Any:
    return field(default=default, metadata={"help": text, "metavar": metavar})


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """The options of the server; `flax-rerank serve --help` explains each.

    Raises ValueError for a number that is not positive, and for a queue that cannot hold one full request.
    """

    host: str = _option("address to listen on; 0.0.0.0 for all networks", "127.0.0.1", "HOST")
    port: int = _option("port to listen on; 0 for a free one", 8080, "PORT")
    served_model_name: Sequence[str] = _option(
        "names that requests may give for the model; by default the last part of MODEL, and MODEL", (), "NAME"
    )
    timeout: float = _option("seconds after which a request is given up (408)", 30.0, "S")
    batch_pairs: int = _option("pairs that are scored together, of all requests that wait", 128, "N")
    max_queue: int = _option("pairs that may wait; requests beyond them are refused (429)", 4096, "N")
    max_documents: int = _option("documents of a request", 1000, "N")
    max_body_bytes: int = _option("bytes of a request (413)", 4 * 2**20, "N")

    def __post_init__(self) -> None:
        for name in POSITIVE:
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be positive")
        if self.max_queue < self.max_documents:
            raise ValueError(f"max_queue, {self.max_queue}, must be at least max_documents, {self.max_documents}")
