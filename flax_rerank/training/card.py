"""The model card of a trained model, in Hugging Face's format."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax_rerank
from flax_rerank.checkpoint.manifest import describe_source
from flax_rerank.saving.card import head
from flax_rerank.spec import Spec
from flax_rerank.training.settings import TrainingSettings


def model_card(
    spec: Spec,
    settings: TrainingSettings,
    data: Mapping[str, str],
    losses: Sequence[Mapping[str, Any]],
    evaluations: Sequence[Mapping[str, Any]],
    given_step: int,
) -> str:
    """Base, data, settings, curve and evaluation of a run, as README.md.

    Args:
        spec: of the model.
        settings: of the run.
        data: the sha256 of each file of data, by its name.
        losses, evaluations: the points of both curves.
        given_step: the step whose parameters the model has.
    """
    source = describe_source(spec.name, spec.folder) if spec.folder is not None else {"name": spec.name}
    base = source["name"]
    about = (
        f"A reranker of the kind {spec.model_class.value}, fine-tuned from {base} with flax-rerank "
        f"{flax_rerank.__version__}. It has the parameters after step {given_step} of {losses[-1]['step']}."
    )
    lines = [
        *head(Path(settings.output_dir).name, base, about),
        "## Data",
        "",
        *(f"- `{Path(name).name}` (sha256 {digest[:16]})" for name, digest in data.items()),
        "",
        "## Evaluation",
        "",
        *(_table(evaluations) if evaluations else ["None while training."]),
        "",
        "## Loss",
        "",
        *_table(_thinned(losses)),
        "",
        "## Settings",
        "",
        "```json",
        json.dumps(settings.identity(), indent=2, ensure_ascii=False, default=str),
        "```",
        "",
    ]
    return "\n".join(lines)


def _thinned(losses: Sequence[Mapping[str, Any]], count: int = 10) -> list[dict[str, Any]]:
    """The mean loss in tenths of the run."""
    size = -(-len(losses) // count)
    parts = [losses[start : start + size] for start in range(0, len(losses), size)]
    return [{"step": part[-1]["step"], "loss": sum(point["loss"] for point in part) / len(part)} for part in parts]


def _table(points: Sequence[Mapping[str, Any]]) -> list[str]:
    names = list(points[0])
    rows = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    for point in points:
        cells = (f"{value:.4f}" if isinstance(value, float) else str(value) for value in point.values())
        rows.append("| " + " | ".join(cells) + " |")
    return rows
