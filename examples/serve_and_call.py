"""Ask a server for a ranking, in the shape of Cohere's API.

flax-rerank serve MODEL --port 8080 &
python examples/serve_and_call.py "what is panda?" "hi" "The giant panda is a bear species."
"""

import json
import sys
from urllib.request import Request, urlopen

ADDRESS = "http://127.0.0.1:8080/v2/rerank"


def main(query: str, *documents: str) -> None:
    body = {"model": "reranker", "query": query, "documents": documents, "top_n": 3}
    request = Request(ADDRESS, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urlopen(request, timeout=60) as response:
        results = json.load(response)["results"]
    for each in results:
        print(f"{each['relevance_score']:.4f}  {documents[each['index']]}")


if __name__ == "__main__":
    main(*sys.argv[1:])
