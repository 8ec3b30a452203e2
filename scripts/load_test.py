"""Load a server on this machine with many clients, and compare every score with the direct call.

    python scripts/load_test.py load MODEL --beir DIR                  # clients at once for some seconds
    python scripts/load_test.py load MODEL --beir DIR --peer PYTHON    # and infinity-emb, installed for that Python
    python scripts/load_test.py burst MODEL --beir DIR                 # 500 clients at once
    python scripts/load_test.py requests MODEL --beir DIR              # 20,000 requests, memory meanwhile
    python scripts/load_test.py malformed MODEL --beir DIR             # 1,000 malformed requests
    python scripts/load_test.py term MODEL --beir DIR                  # SIGTERM under load

Each prints one JSON object. Servers and clients share the cores, so a direct call has more of them for itself.
"""

import argparse
import asyncio
import collections
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

HOST = "127.0.0.1"
TOLERANCE = 1e-5
REPLY_LIMIT = 2**24
Request = tuple[str, list[str]]
Reply = tuple[int, bytes]


def make_requests(beir: Path, count: int, most: int, seed: int = 0) -> list[Request]:
    """Queries of a BEIR folder, each with 1 to `most` of its passages."""
    generator = random.Random(seed)
    lines = {name: (beir / f"{name}.jsonl").read_text("utf-8").splitlines() for name in ("queries", "corpus")}
    queries = [json.loads(line)["text"] for line in lines["queries"]]
    rows = [json.loads(line) for line in lines["corpus"]]
    passages = [f"{row.get('title', '')} {row['text']}".strip() for row in rows]
    return [(generator.choice(queries), generator.sample(passages, generator.randint(1, most))) for _ in range(count)]


class Connection:
    """A kept connection of one client."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, path: str, body: bytes, method: str = "POST") -> Reply:
        """Status and body. Raises OSError or IncompleteReadError where the server closes the connection."""
        if self._streams is None:
            self._streams = await asyncio.open_connection(HOST, self._port, limit=REPLY_LIMIT)
        reader, writer = self._streams
        writer.write(
            f"{method} {path} HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
        )
        await writer.drain()
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        length = next(line for line in head.splitlines() if line.startswith("content-length:")).partition(":")[2]
        answer = await reader.readexactly(int(length))
        if "connection: close" in head:
            self.close()
        return int(head.split()[1]), answer

    def close(self) -> None:
        """Close it; the next request opens another."""
        if self._streams is not None:
            self._streams[1].close()
        self._streams = None


def encode(request: Request) -> bytes:
    """The body of Jina's API, which both servers speak."""
    query, documents = request
    return json.dumps({"query": query, "documents": documents, "return_documents": False}).encode()


class Seen:
    """What the clients saw."""

    def __init__(self, expected: dict[tuple[str, str], float]) -> None:
        self._expected = expected
        self.statuses: collections.Counter[str] = collections.Counter()
        self.seconds: list[float] = []
        self.pairs = 0
        self.largest_difference = 0.0

    def add(self, request: Request, reply: Reply, seconds: float) -> None:
        """Count a reply, and compare its scores with the direct ones."""
        status, body = reply
        self.statuses[str(status)] += 1
        if status != 200:
            return
        self.seconds.append(seconds)
        query, documents = request
        results = json.loads(body)["results"]
        if sorted(result["index"] for result in results) != list(range(len(documents))):
            raise AssertionError("a reply lacks a document")
        for result in results:
            difference = abs(result["relevance_score"] - self._expected[query, documents[result["index"]]])
            self.largest_difference = max(self.largest_difference, difference)
        self.pairs += len(documents)

    def summary(self, wall: float) -> dict[str, Any]:
        """Of everything that was seen in `wall` seconds."""
        at = {f"p{q}_ms": round(1000 * float(np.percentile(self.seconds, q)), 1) for q in (50, 99)}
        return {
            "statuses": dict(self.statuses),
            "pairs_per_second": round(self.pairs / wall, 1),
            "requests_per_second": round(len(self.seconds) / wall, 1),
            **(at if self.seconds else {}),
            "largest_difference": self.largest_difference,
            "every_score_right": self.largest_difference <= TOLERANCE,
        }


async def load(port: int, requests: list[Request], seen: Seen, clients: int, seconds: float) -> float:
    """Clients that send one request after the other until the time is over; the seconds. For infinite `seconds`,
    each request is sent once."""
    start = time.perf_counter()
    left = iter(requests) if seconds == np.inf else itertools.cycle(requests)
    bodies = {id(request): encode(request) for request in requests}

    async def client() -> None:
        connection = Connection(port)
        for request in left:
            if time.perf_counter() - start > seconds:
                break
            sent = time.perf_counter()
            try:
                reply = await connection.post("/v1/rerank", bodies[id(request)])
            except (OSError, asyncio.IncompleteReadError) as error:
                seen.statuses[type(error).__name__] += 1
                connection.close()
                continue
            seen.add(request, reply, time.perf_counter() - sent)
        connection.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    return time.perf_counter() - start


def memory(process: subprocess.Popen[bytes]) -> int:
    """Resident MiB of a process."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) // 1024


@contextmanager
def serving(
    command: list[str], port: int, path: str, environment: dict[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """A server, from when `path` answers 200 to when it has ended."""
    log = open(f"/tmp/load-test-{port}.log", "wb")  # noqa: SIM115
    process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | environment)

    async def ready() -> bool:
        try:
            return (await Connection(port).post(path, b"", "GET"))[0] == 200
        except OSError:
            return False

    try:
        while not asyncio.run(ready()):
            if process.poll() is not None:
                raise RuntimeError(f"the server ended; see {log.name}")
            time.sleep(0.5)
        yield process
    finally:
        process.terminate()
        process.wait(60)
        log.close()


def ours(model: str, port: int, *options: str) -> Any:
    """Our server."""
    start = "import sys; from flax_rerank.cli import main; sys.exit(main(sys.argv[1:]))"
    return serving([sys.executable, "-c", start, "serve", model, "--port", str(port), *options], port, "/ready", {})


def theirs(python: str, model: str, port: int) -> Any:
    """infinity-emb with torch."""
    program = str(Path(python).with_name("infinity_emb"))
    options = [
        "--model-id",
        model,
        "--engine",
        "torch",
        "--device",
        "cpu",
        "--dtype",
        "float32",
        "--url-prefix",
        "/v1",
    ]
    options += ["--no-bettertransformer", "--no-compile", "--served-model-name", "model"]
    return serving([program, "v2", *options, "--port", str(port)], port, "/health", {"HF_HUB_OFFLINE": "1"})


def direct(model: str, requests: list[Request]) -> tuple[dict[tuple[str, str], float], float]:
    """The probabilities of all pairs by one direct call, and its pairs in a second (compiled before)."""
    from flax_rerank import FlaxAutoReranker

    reranker = FlaxAutoReranker.from_finetuned(model, show_progress_bar=False)
    pairs = list(dict.fromkeys((query, document) for query, documents in requests for document in documents))
    prepared = reranker.prepare(pairs, normalize=True)
    reranker.warmup(prepared)
    start = time.perf_counter()
    output = reranker.run(reranker.prepare(pairs, table=prepared.table, normalize=True))
    assert not isinstance(output.scores, dict)
    return dict(zip(pairs, output.scores.tolist(), strict=True)), len(pairs) / (time.perf_counter() - start)


def malformed(count: int, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """Paths and bodies that are not requests."""
    generator = random.Random(seed)
    good = {
        "/v2/rerank": {"model": "no model", "query": "q", "documents": ["d"]},
        "/v1/rerank": {"query": "q", "documents": ["d"], "top_n": -1},
        "/rerank": {"query": "q", "texts": [1]},
        "/score": {"text_1": ["a", "b"], "text_2": ["c"] * 3},
        "/rank": {"query": "q", "passages": []},
    }
    kinds = [
        lambda body: body,
        lambda body: body[: generator.randrange(len(body))],
        lambda body: body.replace(b'"q"', b'"\xff\xfe"').replace(b'"a"', b'"\xff"'),
        lambda body: b"[" * generator.randrange(1, 50_000),
        lambda body: generator.randbytes(generator.randrange(200)),
        lambda body: json.dumps(generator.choice([1, None, "x", [], {}, {"query": {}}, 1e308])).encode(),
        lambda body: b" " * (5 * 2**20),
    ]
    for _ in range(count):
        path = generator.choice(list(good))
        yield path, generator.choice(kinds)(json.dumps(good[path]).encode())


def run_load(args: argparse.Namespace, expected: Any, requests: list[Request]) -> dict[str, Any]:
    """The same load on our server and on the peer."""
    found = {}
    sides = {"flax-rerank": lambda: ours(args.model, args.port)}
    if args.peer:
        sides["infinity-emb"] = lambda: theirs(args.peer, args.model, args.port + 1)
    for place, (name, start) in enumerate(sides.items()):
        with start() as process:
            asyncio.run(load(args.port + place, requests[:200], Seen(expected), args.clients, 5.0))  # warm
            seen = Seen(expected)
            wall = asyncio.run(load(args.port + place, requests, seen, args.clients, args.seconds))
            found[name] = {**seen.summary(wall), "memory_mib": memory(process)}
        print(f"{name}: {found[name]}", file=sys.stderr)
    return found


def run_burst(args: argparse.Namespace, expected: Any, requests: list[Request]) -> dict[str, Any]:
    """Many clients at once, one request each."""
    with ours(args.model, args.port, "--timeout", "10"):
        seen = Seen(expected)
        wall = asyncio.run(load(args.port, requests[: args.clients], seen, args.clients, np.inf))
        return {**seen.summary(wall), "slowest_s": round(max(seen.seconds), 2)}


def run_requests(args: argparse.Namespace, expected: Any, requests: list[Request]) -> dict[str, Any]:
    """Many requests; memory after each tenth of them."""
    with ours(args.model, args.port) as process:
        seen, marks, wall = Seen(expected), [memory(process)], 0.0
        for tenth in range(10):
            part = [
                requests[i % len(requests)] for i in range(tenth * args.count // 10, (tenth + 1) * args.count // 10)
            ]
            wall += asyncio.run(load(args.port, part, seen, args.clients, np.inf))
            marks.append(memory(process))
        return {**seen.summary(wall), "memory_mib": marks}


def run_malformed(args: argparse.Namespace, expected: Any, requests: list[Request]) -> dict[str, Any]:
    """Malformed requests, and sound ones before and after."""
    with ours(args.model, args.port) as process:
        statuses: collections.Counter[int] = collections.Counter()
        before = memory(process)

        async def send() -> None:
            for path, body in malformed(args.count):
                connection = Connection(args.port)
                statuses[(await connection.post(path, body))[0]] += 1
                connection.close()

        asyncio.run(send())
        seen = Seen(expected)
        wall = asyncio.run(load(args.port, requests[:20], seen, 4, np.inf))
        return {"malformed": dict(statuses), "memory_mib": [before, memory(process)], "after": seen.summary(wall)}


def run_term(args: argparse.Namespace, expected: Any, requests: list[Request]) -> dict[str, Any]:
    """SIGTERM while clients wait. A request on a connection that the server had closed is not an accepted one."""
    with ours(args.model, args.port) as process:
        seen = Seen(expected)

        async def both() -> None:
            asyncio.get_running_loop().call_later(args.seconds, process.send_signal, signal.SIGTERM)
            await load(args.port, requests, seen, args.clients, args.seconds + 5)

        asyncio.run(both())
        return {"exit_code": process.wait(60), **seen.summary(args.seconds)}


RUNS = {
    "load": run_load,
    "burst": run_burst,
    "requests": run_requests,
    "malformed": run_malformed,
    "term": run_term,
}


def main() -> None:
    """Run one of the tests."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("test", choices=RUNS)
    parser.add_argument("model", metavar="MODEL", help="a folder")
    parser.add_argument("--beir", type=Path, required=True, metavar="DIR", help="queries.jsonl and corpus.jsonl")
    parser.add_argument("--peer", metavar="PYTHON", help="of an environment with infinity-emb")
    parser.add_argument("--clients", type=int, default=None, metavar="N")
    parser.add_argument("--seconds", type=float, default=60.0, metavar="S")
    parser.add_argument("--count", type=int, default=None, metavar="N", help="of requests")
    parser.add_argument("--passages", type=int, default=20, metavar="N", help="of a request, at most")
    parser.add_argument("--pool", type=int, default=500, metavar="N", help="different requests")
    parser.add_argument("--port", type=int, default=18080, metavar="PORT")
    args = parser.parse_args()
    args.clients = args.clients or (500 if args.test == "burst" else 32)
    args.count = args.count or (20_000 if args.test == "requests" else 1000)
    requests = make_requests(args.beir, args.pool, args.passages)
    expected, rate = direct(args.model, requests)
    found = RUNS[args.test](args, expected, requests)
    print(json.dumps({"test": args.test, "direct_pairs_per_second": round(rate, 1), **found}, indent=2))


if __name__ == "__main__":
    main()
