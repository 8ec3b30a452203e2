"""What was measured, in figures, as a table, and as a picture."""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

GIB = 2**30
SIDES = {"ours": "flax-rerank", "ours, cache filled": "flax-rerank, cache filled", "theirs": "FlagEmbedding"}
# Header, key of a side's figures, how it is written, and by what it is divided.
COLUMNS = (
    ("seconds", "seconds", "{:.2f}", 1),
    ("pairs/s", "pairs_per_second", "{:.1f}", 1),
    ("tokens/s", "tokens_per_second", "{:,.0f}", 1),
    ("ratio (least to most)", "ratio", "{0[median]:.2f} ({0[least]:.2f} to {0[most]:.2f})", None),
    ("padding", "padding_share", "{:.1%}", 1),
    ("peak GFLOP/s", "peak_flops_per_second", "{:.0f}", 1e9),
    ("share of it", "share_of_peak", "{:.0%}", 1),
    ("compiles", "compiles", "{}", None),
    ("compile s", "compile_seconds", "{:.1f}", 1),
    ("GiB at most", "peak_bytes", "{:.2f}", GIB),
    ("CPU of others", "others_cpu_share", "{:.0%}", 1),
    ("host not hidden", "host_share", "{:.1%}", 1),
    ("score difference", "score_difference", "{:.1e}", 1),
)

Answers = Sequence[dict[str, Any]]


def summarize(rounds: Mapping[str, Answers], pairs: int) -> dict[str, Any]:
    """For each side the medians over its answers, one a round, and for this project how many times as long
    FlagEmbedding took, round by round."""
    summary = {}
    theirs = [answer["seconds"] for answer in rounds["theirs"]]
    for side, answers in rounds.items():
        seconds = [answer["seconds"] for answer in answers]
        figures: dict[str, Any] = {"seconds": statistics.median(seconds), "rounds": answers}
        figures["pairs_per_second"] = pairs / figures["seconds"]
        for name in ("tokens", "flops"):
            if name in answers[0]:
                figures[f"{name}_per_second"] = statistics.median(each[name] / each["seconds"] for each in answers)
        if pairs > 1:
            computed = sum(each["computed_tokens"] for each in answers)
            figures["others_cpu_share"] = statistics.median(each["others_cpu_share"] for each in answers)
            figures["padding_share"] = sum(each["padding_tokens"] for each in answers) / computed
        if side != "theirs":
            ratios = [b / a for a, b in zip(seconds, theirs, strict=True)]
            figures["ratio"] = {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}
        summary[side] = figures
    return summary


def largest_difference(ours: Any, theirs: Any) -> float:
    """Between scores, or lists of scores of several layers."""
    return float(np.abs(np.asarray(ours) - np.asarray(theirs)).max())


def as_markdown(result: Mapping[str, Any]) -> str:
    """The machine, a table with a row for each model, workload and side, and with what they were measured."""
    machine = result["machine"]
    lines = [f"{machine['cpu']}, {machine['cpus']} CPUs, {machine['memory_bytes'] / GIB:.0f} GiB", ""]
    headers = ["model", "workload", "side", *(header for header, *_ in COLUMNS)]
    lines += [_row(headers), _row(["---"] * len(headers))]
    for model, measured in result["models"].items():
        for workload, summary in measured["workloads"].items():
            for side, figures in summary.items():
                lines.append(_row([model, workload, SIDES[side], *(_cell(figures, *column) for column in COLUMNS)]))
    lines += ["", f"all: {json.dumps(result['settings'])}"]
    for model, measured in result["models"].items():
        lines += ["", f"{model}: {json.dumps(measured['setting'])}"]
    return "\n".join(lines)


def _cell(figures: Mapping[str, Any], _: str, key: str, form: str, unit: float | None) -> str:
    value = figures.get(key)
    return "" if value is None else form.format(value if unit is None else value / unit)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def plot(result: Mapping[str, Any], path: Path) -> None:
    """Draw the pairs a second of both sides and their ratio, for every model and workload that is warm.

    Raises:
        ImportError: without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("a plot takes matplotlib: pip install matplotlib") from error
    bars = {
        f"{model}\n{workload}": summary
        for model, measured in result["models"].items()
        for workload, summary in measured["workloads"].items()
        if workload != "cold"
    }
    figure = Figure(figsize=(10, 1.5 + 0.8 * len(bars)), layout="constrained")
    speeds, times = figure.subplots(1, 2, sharey=True)
    places = np.arange(len(bars))
    for offset, side in ((-0.2, "ours"), (0.2, "theirs")):
        each = [summary[side]["pairs_per_second"] for summary in bars.values()]
        speeds.bar_label(speeds.barh(places + offset, each, height=0.38, label=SIDES[side]), fmt="%.3g", padding=2)
    lowest = min(summary[side]["pairs_per_second"] for summary in bars.values() for side in ("ours", "theirs"))
    speeds.set(xlabel="pairs/s", xscale="log", yticks=places, yticklabels=list(bars))
    speeds.set_xlim(left=lowest / 10)
    speeds.invert_yaxis()
    speeds.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False)
    ratio = np.array([[s["ours"]["ratio"][k] for k in ("least", "median", "most")] for s in bars.values()])
    times.barh(places, ratio[:, 1], height=0.5, xerr=np.diff(ratio, axis=1).T, color="grey")
    times.axvline(1.0, color="black", linewidth=0.8)
    times.set(xlabel="times FlagEmbedding's pairs/s")
    figure.savefig(path)
