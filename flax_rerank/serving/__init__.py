"""The HTTP server: rerank requests of several APIs, scored together. Needs the extra `serve`."""
