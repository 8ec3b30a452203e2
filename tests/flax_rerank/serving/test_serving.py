"""Many requests: shared steps, the queue, deadlines, clients that go away."""

import http.client
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import numpy as np
import pytest

BODY = {"query": "what is panda?", "passages": ["hi"], "normalize": False}


class Held:
    """A reranker whose `run` waits until it is released, but for the warm-up."""

    def __init__(self, reranker):
        self._reranker = reranker
        self.released, self.entered = threading.Event(), threading.Event()
        self.held = False
        self.seen = []

    def __getattr__(self, name):
        return getattr(self._reranker, name)

    def run(self, prepared, **options):
        self.seen.append(len(prepared))
        if self.held:
            self.entered.set()
            assert self.released.wait(60)
        return self._reranker.run(prepared, **options)


@pytest.fixture
def held(small):
    return Held(small)


def until(condition):
    for _ in range(2000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it does not come true")


def post_all(client, bodies):
    with ThreadPoolExecutor(len(bodies)) as pool:
        return list(pool.map(lambda body: client.post("/rank", body), bodies))


def test_requests_share_steps_and_get_their_own_scores(serve, held, small):
    bodies = [
        {**BODY, "query": f"query {n}", "passages": [f"passage {n} {m}" * (1 + m % 5) for m in range(1 + 3 * n)]}
        for n in range(12)
    ]
    with serve(reranker=held, batch_pairs=50) as client:
        client.wait_until_ready()
        held.held = True
        with ThreadPoolExecutor(1) as pool:
            replies = pool.submit(post_all, client, bodies)
            assert held.entered.wait(60)
            until(lambda: client.metric("pairs_waiting") > 100)
            held.released.set()
            replies = replies.result()
        assert client.metric("batch_requests_sum") > client.metric("batch_requests_count")
        assert client.metric("compilations_total") == 0
        assert max(held.seen[1:]) == 50  # pairs of a batch, also of the longest requests together
    for body, reply in zip(bodies, replies, strict=True):
        assert reply.status == 200
        expected = small.compute_score([(body["query"], passage) for passage in body["passages"]])
        got = {result["index"]: result["score"] for result in reply.json["results"]}
        np.testing.assert_allclose([got[index] for index in range(len(expected))], expected, atol=1e-5)


def test_a_full_queue_refuses(serve, held):
    with serve(reranker=held, max_queue=4, max_documents=4) as client:
        client.wait_until_ready()
        held.held = True
        waiting = [threading.Thread(target=client.post, args=("/rank", BODY)) for _ in range(6)]
        for thread in waiting:
            thread.start()
            time.sleep(0.05)
        until(lambda: client.metric("pairs_waiting") == 4)
        for path, body, told in [
            ("/rank", BODY, "4 pairs wait already; try again later"),
            ("/rerank", {"query": "q", "texts": ["hi"]}, '"error_type":"Overloaded"'),
        ]:
            reply = client.post(path, body)
            assert reply.status == 429
            assert told in reply.text
            assert int(reply.headers["Retry-After"]) >= 1
        held.released.set()
        for thread in waiting:
            thread.join()
        assert client.post("/rank", BODY).status == 200


def test_what_is_late_or_abandoned_is_not_scored(serve, held):
    with serve(reranker=held, timeout=1.0) as client:
        client.wait_until_ready()
        held.held = True
        first = threading.Thread(target=client.post, args=("/rank", BODY))
        first.start()
        assert held.entered.wait(60)
        # The next is tokenised, the one after it waits.
        abandoned = [http.client.HTTPConnection(urlsplit(client.url).netloc) for _ in range(2)]
        for number, connection in enumerate(abandoned, 1):
            connection.request("POST", "/rank", json.dumps(BODY))
            until(lambda number=number: client.metric("pairs_waiting") == number - 1)
        for connection in abandoned:
            connection.close()
        reply = client.post("/rank", BODY)
        assert (reply.status, reply.json) == (408, {"error": "the request was not done in 1 s"})
        scored = len(held.seen)
        held.released.set()
        first.join()
        assert client.post("/rank", BODY).status == 200
        assert len(held.seen) == scored + 1
        assert client.metric("dropped_pairs_total") == 3


def test_a_model_that_fails_fails_its_requests_alone(serve, held, caplog):
    secret = "a passage that nobody may read"
    with serve(reranker=held) as client:
        client.wait_until_ready()
        held.run = lambda prepared, **options: (_ for _ in ()).throw(MemoryError("a step does not fit"))
        for path, body, status in [
            ("/rank", {**BODY, "passages": [secret]}, 500),
            ("/rerank", {"query": secret, "texts": [secret]}, 424),
        ]:
            reply = client.post(path, body)
            assert reply.status == status
            assert "the model failed" in reply.text
        del held.run
        assert client.post("/rank", BODY).status == 200
    assert "MemoryError: a step does not fit" in caplog.text
    assert secret not in caplog.text


def test_it_is_not_ready_before_its_shapes_are_compiled(serve, held):
    held.held = True  # the warm-up, too
    with serve(reranker=held) as client:
        assert client.get("/health").status == 200
        assert client.get("/ready").status == 503
        reply = client.post("/rerank", {"query": "q", "texts": ["hi"]})
        assert (reply.status, reply.json["error_type"]) == (503, "Unhealthy")
        held.released.set()
        client.wait_until_ready()
        assert client.post("/rank", BODY).status == 200
