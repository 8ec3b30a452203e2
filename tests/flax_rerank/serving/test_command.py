"""`flax-rerank serve`."""

import os
import re
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from reference_cases import CASES
from serving_client import Client

from flax_rerank.cli import main

COMMAND = [sys.executable, "-c", "import sys; from flax_rerank.cli import main; sys.exit(main(sys.argv[1:]))"]
MODEL = str(CASES / "encoder-bert")


def test_sigterm_loses_no_request_that_was_accepted():
    arguments = ["serve", MODEL, "--port", "0", "--max-length", "32", "--devices", "cpu:0"]
    environment = os.environ | {"FLAX_RERANK_API_KEY": "s3cret"}
    process = subprocess.Popen([*COMMAND, *arguments], env=environment, stderr=subprocess.PIPE, text=True)
    try:
        address = re.search(r"http://\S+(?=, not ready)", process.stderr.readline())
        client = Client(address[0], "s3cret")
        client.wait_until_ready()
        body = {"query": "what is panda?", "passages": ["The giant panda is a bear. " * n for n in range(40)]}
        with ThreadPoolExecutor(16) as pool:
            replies = [pool.submit(client.post, "/rank", body) for _ in range(16)]
            while client.metric("pairs_waiting") == 0 and not all(reply.done() for reply in replies):
                pass
            process.send_signal(signal.SIGTERM)
            # A request that comes after the signal may find no server.
            answered = [reply.result() for reply in replies if not isinstance(reply.exception(), OSError)]
        assert process.wait(60) == 143
        assert answered
        assert {reply.status for reply in answered} == {200}
        assert {len(reply.json["results"]) for reply in answered} == {40}
        assert "Traceback" not in process.stderr.read()
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--batch-pairs", "0"], "batch_pairs is 0; it must be positive"),
        (["--max-queue", "5"], "max_queue, 5, must be at least max_documents, 1000"),
        (["--cutoff-layers", "2"], "--cutoff-layers is not an option for"),
    ],
)
def test_what_is_at_fault_is_named(capsys, options, told):
    assert main(["serve", MODEL, "--port", "0", *options]) == 1
    assert told in capsys.readouterr().err


def test_a_port_that_is_taken_is_named_before_the_model_is_loaded(capsys):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        assert main(["serve", "/no/model", "--port", port]) == 1
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in capsys.readouterr().err


def test_an_empty_token_is_refused(capsys, monkeypatch):
    monkeypatch.setenv("FLAX_RERANK_API_KEY", " ")
    assert main(["serve", MODEL, "--port", "0"]) == 1
    assert "FLAX_RERANK_API_KEY is empty" in capsys.readouterr().err
