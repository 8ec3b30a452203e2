"""Train the same encoder on the same data with this project and with others, in turns: examples/s and memory.

Each trainer runs in a process of its own, the others in their own interpreters. An example is a query with its group
of passages. The first steps of each run, in which this project compiles, are left out of examples/s and given apart.

    bench_training.py --model FOLDER --data train.jsonl --sentence-transformers ST/bin/python \\
        --flagembedding FE/bin/python

The data is FlagEmbedding's JSON lines of query, pos and neg.
"""

import argparse
import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

WARM_UP = 8  # steps


def ours(options: argparse.Namespace, out: str, times: list[float]) -> None:
    """Train with flax-rerank."""
    from flax_rerank.training import TrainingSettings, curves, train

    add = curves.Curve.add

    def timed(self: Any, point: Any) -> None:
        add(self, point)
        times.append(time.perf_counter())

    curves.Curve.add = timed  # type: ignore[method-assign]
    settings = TrainingSettings(
        output_dir=out,
        max_steps=options.steps,
        per_device_train_batch_size=options.batch_size,
        train_group_size=options.group_size,
        query_max_len=32,
        passage_max_len=options.max_length - 32,
        learning_rate=1e-5,
        show_progress_bar=False,
        devices="cpu:0",
    )
    train(options.model, options.data, settings)


def flagembedding(options: argparse.Namespace, out: str, times: list[float]) -> None:
    """Train with FlagEmbedding's runner."""
    from FlagEmbedding.abc.finetune.reranker import (
        AbsRerankerDataArguments,
        AbsRerankerModelArguments,
        AbsRerankerTrainingArguments,
    )
    from FlagEmbedding.finetune.reranker.encoder_only.base import EncoderOnlyRerankerRunner

    runner = EncoderOnlyRerankerRunner(
        AbsRerankerModelArguments(model_name_or_path=options.model),
        AbsRerankerDataArguments(
            train_data=[options.data],
            train_group_size=options.group_size,
            query_max_len=32,
            passage_max_len=options.max_length - 32,
        ),
        AbsRerankerTrainingArguments(**_hugging_face(options, out), overwrite_output_dir=True),
    )
    runner.trainer.add_callback(_clock(times))
    runner.trainer.train()


def sentence_transformers(options: argparse.Namespace, out: str, times: list[float]) -> None:
    """Train with sentence-transformers' CrossEncoderTrainer, by its loss of lists."""
    from datasets import Dataset
    from sentence_transformers.cross_encoder import (
        CrossEncoder,
        CrossEncoderTrainer,
        CrossEncoderTrainingArguments,
        losses,
    )

    rows = [json.loads(line) for line in Path(options.data).read_text(encoding="utf-8").splitlines()]
    negatives = options.group_size - 1
    groups = [(row["query"], [row["pos"][0], *(row["neg"] * negatives)[:negatives]]) for row in rows]
    data = Dataset.from_dict(
        {
            "query": [query for query, _ in groups],
            "docs": [docs for _, docs in groups],
            "labels": [[1.0] + [0.0] * negatives for _ in groups],
        }
    )
    kind = {"dtype": "float32"}  # else that of the checkpoint, which may be float16
    model = CrossEncoder(options.model, num_labels=1, max_length=options.max_length, device="cpu", model_kwargs=kind)
    trainer = CrossEncoderTrainer(
        model=model,
        args=CrossEncoderTrainingArguments(**_hugging_face(options, out)),
        train_dataset=data,
        loss=losses.ListNetLoss(model),
        callbacks=[_clock(times)],
    )
    trainer.train()


def _hugging_face(options: argparse.Namespace, out: str) -> dict[str, Any]:
    return {
        "output_dir": out,
        "max_steps": options.steps,
        "per_device_train_batch_size": options.batch_size,
        "learning_rate": 1e-5,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_drop_last": True,
        "use_cpu": True,
    }


def _clock(times: list[float]) -> Any:
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def on_step_end(self, *arguments: Any, **keywords: Any) -> None:
            times.append(time.perf_counter())

    return Clock()


TRAINERS = {"ours": ours, "sentence-transformers": sentence_transformers, "flagembedding": flagembedding}


def work(options: argparse.Namespace) -> dict[str, float]:
    """One run of one trainer."""
    times: list[float] = []
    if importlib.util.find_spec("torch") is not None:
        import torch

        torch.set_num_threads(os.cpu_count() or 1)
    with tempfile.TemporaryDirectory() as out:
        start = time.perf_counter()
        TRAINERS[options.worker](options, f"{out}/run", times)
    measured = len(times) - WARM_UP
    return {
        "examples_per_second": measured * options.batch_size / (times[-1] - times[WARM_UP - 1]),
        "seconds_of_first_steps": times[WARM_UP - 1] - start,
        "peak_gigabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a folder with an encoder that has a head of one label")
    parser.add_argument("--data", required=True, metavar="FILE")
    parser.add_argument("--sentence-transformers", metavar="PYTHON", help="its interpreter")
    parser.add_argument("--flagembedding", metavar="PYTHON", help="its interpreter")
    parser.add_argument("--steps", type=int, default=40, help=f"of a run; the first {WARM_UP} are not timed")
    parser.add_argument("--batch-size", type=int, default=4, help="queries in a step")
    parser.add_argument("--group-size", type=int, default=8, help="passages to a query")
    parser.add_argument("--max-length", type=int, default=160, help="tokens of a pair")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--worker", choices=TRAINERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(work(options)))
        return
    pythons = {"ours": sys.executable}
    pythons |= {name: value for name in TRAINERS if (value := vars(options).get(name.replace("-", "_"))) is not None}
    results: dict[str, list[dict[str, float]]] = {name: [] for name in pythons}
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    for _ in range(options.rounds):
        for name, python in pythons.items():
            command = [python, __file__, *sys.argv[1:], "--worker", name]
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"{name} failed:\n{done.stderr[-3000:]}")
            results[name].append(json.loads(done.stdout.splitlines()[-1]))
    print(f"| trainer | examples/s | ratio | peak memory, GB | start and {WARM_UP} steps, s |\n|---|---|---|---|---|")
    for name, runs in results.items():
        speed = statistics.median(run["examples_per_second"] for run in runs)
        pairs = zip(results["ours"], runs, strict=True)
        ratio = statistics.median(one["examples_per_second"] / run["examples_per_second"] for one, run in pairs)
        memory, first = (
            statistics.median(run[key] for run in runs) for key in ("peak_gigabytes", "seconds_of_first_steps")
        )
        print(f"| {name} | {speed:.2f} | {ratio:.2f} | {memory:.2f} | {first:.1f} |")


if __name__ == "__main__":
    main()
