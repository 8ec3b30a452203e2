"""A server that speaks as much of the Hugging Face hub's protocol as uploading and downloading a model takes."""

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


class Hub:
    """Repositories, by name: the files of their only branch, by path.

    Attributes:
        address: of the server.
        repositories: what it holds.
        commits: the message of each commit.
        tokens: the authorization of each request that changes something.
    """

    def __init__(self):
        self.address = ""
        self.repositories = {}
        self.commits = []
        self.tokens = []

    def sha(self, name):
        """The commit that a repository is at."""
        files = sorted((path, hashlib.sha1(data).hexdigest()) for path, data in self.repositories[name].items())
        return hashlib.sha1(repr(files).encode()).hexdigest()

    def create(self, body):
        """A new repository; 409 if it exists, 403 if it is not that of "me"."""
        name = "/".join(filter(None, (body.get("organization"), body["name"])))
        if not name.startswith("me/"):
            return 403, {"error": "You don't have the rights to create a model there"}
        if name in self.repositories:
            return 409, {"error": "it exists", "url": f"{self.address}/{name}"}
        self.repositories[name] = {}
        return 200, {"url": f"{self.address}/{name}", "id": name}

    def commit(self, name, lines):
        """A commit of added and deleted files."""
        files = self.repositories[name]
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.commits.append(value["summary"])
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        oid = self.sha(name)
        return 200, {"commitUrl": f"{self.address}/{name}/commit/{oid}", "commitOid": oid, "success": True}


@contextmanager
def serve():
    """A hub on 127.0.0.1."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args):
            pass

        def do_POST(self):
            data = (
                self.rfile.read(int(self.headers["Content-Length"] or 0))
                if "Content-Length" in self.headers
                else (b"".join(self._chunks()))
            )
            parts = urlsplit(self.path).path.strip("/").split("/")
            hub.tokens.append(self.headers["Authorization"])
            if parts[-1] == "validate-yaml":
                return self._answer(200, {"errors": [], "warnings": []})
            if parts[1:] == ["repos", "create"]:
                return self._answer(*hub.create(json.loads(data)))
            name = "/".join(parts[2:4])
            if parts[4] == "preupload":
                files = [
                    {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                    for file in json.loads(data)["files"]
                ]
                return self._answer(200, {"files": files})
            return self._answer(*hub.commit(name, map(json.loads, data.splitlines())))

        def do_HEAD(self):
            self.do_GET()

        def do_GET(self):
            parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
            name = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
            if name not in hub.repositories:
                return self._answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            files, sha = hub.repositories[name], hub.sha(name)
            if parts[0] != "api":
                data = files["/".join(parts[4:])]
                etag = hashlib.sha1(data).hexdigest()
                return self._answer(200, data, {"ETag": f'"{etag}"', "X-Repo-Commit": sha})
            if "tree" in parts:
                return self._answer(
                    200,
                    [
                        {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                        for path, data in files.items()
                    ],
                )
            siblings = [{"rfilename": path} for path in files]
            return self._answer(200, {"id": name, "modelId": name, "sha": sha, "siblings": siblings})

        def _chunks(self):
            while size := int(self.rfile.readline(), 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()

        def _answer(self, status, value, headers=None):
            data = value if isinstance(value, bytes) else json.dumps(value).encode()
            self.send_response(status)
            for header, text in (headers or {}).items():
                self.send_header(header, text)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hub.address = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
