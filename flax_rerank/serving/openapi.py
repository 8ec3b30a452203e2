"""The description of the APIs, for machines (OpenAPI) and people."""

import html
import json
from collections.abc import Mapping

from flax_rerank import __version__
from flax_rerank.serving.apis.common import JSON, Api

STATUSES = {
    "200": "the scores",
    "400": "the request is at fault (422 or 413 where the API has these)",
    "401": "the token is missing or wrong",
    "404": "the model is not served",
    "408": "the deadline has passed",
    "413": "the body is too large",
    "429": "too many pairs wait; Retry-After says when to come again",
    "503": "the model is not ready yet",
}
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>flax-rerank: APIs</title>
<style>body{{font:16px system-ui;max-width:50em;margin:2em auto;padding:0 1em}}pre{{background:#8882;padding:1em;
overflow:auto}}td{{padding:.2em 1em .2em 0;vertical-align:top}}</style>
<h1>{model}</h1><p>Also: <a href="/">try it</a>, <a href="/openapi.json">openapi.json</a>,
<a href="/health">health</a>, <a href="/ready">ready</a>, <a href="/metrics">metrics</a>.</p>{sections}</html>"""


def describe(apis: Mapping[str, tuple[Api, ...]], model: str) -> JSON:
    """The OpenAPI document of these APIs, by path."""
    paths = {}
    for path, served in apis.items():
        schemas = [_schema(api) for api in served]
        examples = {api.name: {"value": api.example} for api in served}
        content = {"schema": schemas[0] if len(schemas) == 1 else {"oneOf": schemas}, "examples": examples}
        paths[path] = {
            "post": {
                "summary": "; or ".join(api.summary for api in served),
                "requestBody": {"required": True, "content": {"application/json": content}},
                "responses": {status: {"description": text} for status, text in STATUSES.items()},
                "security": [{"token": []}, {}],
            }
        }
    return {
        "openapi": "3.1.0",
        "info": {"title": f"flax-rerank serves {model}", "version": __version__},
        "paths": paths,
        "components": {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
    }


def as_page(apis: Mapping[str, tuple[Api, ...]], model: str) -> str:
    """The same as a page."""
    sections = []
    for path, served in apis.items():
        for api in served:
            rows = "".join(
                f"<tr><td><code>{name}</code><td>{html.escape(field.words)}<td>"
                + ("required" if field.required else f"by default {html.escape(json.dumps(field.default))}")
                for name, field in api.fields.items()
            )
            example = html.escape(json.dumps({**api.example, **({"model": model} if "model" in api.example else {})}))
            sections.append(
                f"<h2>POST {path}</h2><p>{api.summary}.</p><table>{rows}</table>"
                f"<pre>curl -s http://HOST:PORT{path} -H 'Content-Type: application/json' -d '{example}'</pre>"
            )
    return PAGE.format(model=html.escape(model), sections="".join(sections))


def _schema(api: Api) -> JSON:
    return {
        "type": "object",
        "title": api.name,
        "properties": {name: field.schema for name, field in api.fields.items()},
        "required": [name for name, field in api.fields.items() if field.required],
    }
