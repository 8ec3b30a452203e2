"""Render a chat template: a script that is run by its path, in a process of its own.

Reads one JSON object from stdin (`template`, `variables`, `conversations`, `seconds`, `bytes`) and writes one to
stdout: `texts`, a rendering of each conversation, or `error`. Nothing of this package is imported: a template reaches
no more than what is in this process, and what jinja2's sandbox leaves of that.
"""

import json
import resource
import sys
from collections.abc import Mapping
from typing import Any, NoReturn

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment


def raise_exception(message: str) -> NoReturn:
    """What templates call where they refuse messages."""
    raise TemplateError(message)


def render(request: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to a request."""
    # As transformers sets it up.
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    environment.globals["raise_exception"] = raise_exception
    try:
        template = environment.from_string(request["template"])
        texts = [template.render(messages=messages, **request["variables"]) for messages in request["conversations"]]
        size = sum(len(text.encode()) for text in texts)
    except MemoryError:
        return {"error": "it takes too much memory"}
    except Exception as error:  # noqa: BLE001  (a template may raise anything)
        return {"error": f"{type(error).__name__}: {error}"[:500]}
    if size > request["bytes"]:
        return {"error": f"it makes a text of {size} bytes"}
    return {"texts": texts}


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    resource.setrlimit(resource.RLIMIT_CPU, (asked["seconds"], asked["seconds"]))
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
    json.dump(render(asked), sys.stdout)
