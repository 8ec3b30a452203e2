"""A plain HTTP client for the tests of the server."""

import http.client
import json
import time
from typing import NamedTuple
from urllib.parse import urlsplit


class Reply(NamedTuple):
    status: int
    headers: http.client.HTTPMessage
    text: str

    @property
    def json(self):
        return json.loads(self.text)


class Client:
    def __init__(self, url, token=None):
        self.url, self.token = url, token

    def get(self, path):
        return self.send("GET", path, None)

    def post(self, path, body, token=True):
        """`body` as JSON, or as it is where it is bytes."""
        return self.send("POST", path, body if isinstance(body, bytes) else json.dumps(body).encode(), token)

    def send(self, method, path, body, token=True):
        given = self.token if token is True else token
        headers = {} if given is None else {"Authorization": f"Bearer {given}"}
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=60)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return Reply(response.status, response.headers, response.read().decode())
        finally:
            connection.close()

    def metric(self, name):
        """The sum of a metric over its labels."""
        lines = [line.rsplit(" ", 1) for line in self.get("/metrics").text.splitlines() if line[0] != "#"]
        return sum(float(value) for key, value in lines if key.partition("{")[0] == f"flax_rerank_{name}")

    def wait_until_ready(self):
        for _ in range(1200):
            if self.get("/ready").status == 200:
                return
            time.sleep(0.05)
        raise AssertionError("the server is not ready")
