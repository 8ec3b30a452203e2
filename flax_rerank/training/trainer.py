"""Train a reranker: a run that can be stopped at any time and goes on exactly as it would have."""

import logging
import math
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from tqdm import tqdm

from flax_rerank import distributed
from flax_rerank.auto import class_of, find_model_class, find_spec
from flax_rerank.dtypes import DTYPES, DTypes
from flax_rerank.evaluation import evaluate, open_set
from flax_rerank.jobs.files import is_url
from flax_rerank.jobs.lock import locked
from flax_rerank.jobs.stopping import StopSignals
from flax_rerank.models.compression import Compression
from flax_rerank.params import load_arrays
from flax_rerank.rerankers import AbsReranker
from flax_rerank.settings import RerankerModelClass
from flax_rerank.sharding import DATA, DEFAULT_RULES, make_mesh, parameter_shardings, spans_processes
from flax_rerank.spec import Spec
from flax_rerank.training import lora
from flax_rerank.training.adapter import adapter_tensors
from flax_rerank.training.card import model_card
from flax_rerank.training.checkpoints import Checkpoints
from flax_rerank.training.compressions import Compressions
from flax_rerank.training.curves import Curve, Reports, plot
from flax_rerank.training.data import BatchInfo, TrainingData, open_data
from flax_rerank.training.identity import Identity
from flax_rerank.training.losses import MEANS_OVER_GROUPS
from flax_rerank.training.outputs import MODEL, Outputs
from flax_rerank.training.raw import load_raw, open_raw, with_layer_heads
from flax_rerank.training.settings import TrainingSettings
from flax_rerank.training.step import Batch, Metrics, State, TrainingStep, cut, place

logger = logging.getLogger(__name__)

AHEAD = 2  # steps that the host is ahead of the devices
CPU_TOKENS = 2048  # of a micro batch: 2.2 times as fast as 12,000 in a model 384 wide
SPEC_SETTINGS = (
    *("query_instruction_for_rerank", "query_instruction_format"),
    *("passage_instruction_for_rerank", "passage_instruction_format", "prompt", "prompt_format"),
)


@dataclass(frozen=True)
class TrainingResult:
    """What a run gave.

    Attributes:
        model: the folder of the trained model, a Flax checkpoint.
        step: the step whose parameters it has.
        steps: all that were run.
        evaluations: of each evaluation the step and the measures.
        compiled: programs that were compiled for training steps.
    """

    model: Path
    step: int
    steps: int
    evaluations: Sequence[Mapping[str, Any]]
    compiled: int


def train(
    model: str | PathLike[str] | Spec,
    data: str | PathLike[str] | Sequence[Any],
    settings: TrainingSettings,
) -> TrainingResult:
    """Fine-tune a reranker. A second call with the same arguments continues where the first was stopped.

    `settings.output_dir` gets `model/` (a Flax checkpoint), `checkpoints/`, `curve.jsonl` with the loss, the gradient
    norm and the learning rate of each step, `evaluation.jsonl`, `curve.png` if matplotlib is there, and what
    `settings.export` asks for.

    Args:
        model: a folder or a name on the Hugging Face hub, or a spec.
        data: files of training data, or rows; see `flax_rerank.training.data.open_data`.
        settings: of the run.

    Raises:
        ValueError: data or settings that are wrong, by file and line or by name; a run in `output_dir` that was
            started with others.
        FileExistsError: `output_dir` holds something else.
        FloatingPointError: a loss is not finite; the message has the step and the last good checkpoint.
        OSError: the disk is full. Earlier checkpoints stay.
        SystemExit: SIGTERM (143) or SIGINT (130) came, and a checkpoint was written.
    """
    if not settings.output_dir:
        raise ValueError("output_dir is empty: a run needs a folder")
    if is_url(settings.output_dir):
        raise ValueError(f"output_dir {settings.output_dir} is a URL; it must be a folder on a disk")
    out = Path(settings.output_dir).expanduser()
    place = settings.coordinator, settings.num_processes, settings.process_id
    if place != (None, None, None) or distributed.in_a_cluster():
        distributed.initialize(*place)
    with ExitStack() as stack:
        if jax.process_count() > 1:
            stack.enter_context(distributed.ending_together())
        if jax.process_index() == 0:
            stack.enter_context(locked(str(out)))
        return _Run(model, data, settings, out).run()


def open_trained(model: str | PathLike[str] | Spec, settings: TrainingSettings) -> Spec:
    """The spec of what is trained, with the instructions, prompt and format of the settings. The trained model keeps
    them.

    Raises:
        As `find_spec` and `open_raw`.
    """
    if isinstance(model, Spec):
        return with_layer_heads(model)
    given = {name: value for name in SPEC_SETTINGS if (value := getattr(settings, name)) is not None}
    if not settings.from_raw:
        # A calibration is of the scores before training.
        return with_layer_heads(find_spec(model, settings.model_class, calibration=None, **given))
    kind, _ = find_model_class(str(model), settings.model_class)
    heads = {"start_layer": settings.start_layer, "layer_sep": settings.layer_sep}
    return with_layer_heads(open_raw(str(model), kind, heads, **given))


class _Run:
    def __init__(self, model: Any, data: Any, settings: TrainingSettings, out: Path) -> None:
        self.settings, self.out = settings, out
        self.spec = open_trained(model, settings)
        everywhere = settings.devices is None and settings.mesh is None and jax.process_count() > 1
        self.mesh = make_mesh(settings.devices, {DATA: jax.device_count()} if everywhere else settings.mesh)
        platform = self.mesh.devices.flat[0].platform
        half = platform != "cpu" if settings.bf16 is None else settings.bf16
        computed = DTYPES["bfloat16" if half else "float32"]
        stored = computed if settings.use_lora else DTYPES["float32"]
        self.dtypes = DTypes(stored=stored, computed=computed)
        self.groups = settings.per_device_train_batch_size * self.mesh.shape[DATA]
        paths = [data] if isinstance(data, str | PathLike) else data
        self.data: TrainingData = open_data(
            paths, self.spec, settings, groups_per_micro=self.groups, max_steps=settings.max_steps, loss=settings.loss
        )
        self.steps = self.data.steps
        self.evaluation = None if settings.eval_data is None else open_set(settings.eval_data)
        self.eval_steps = settings.eval_steps or max(self.steps // 10, 1)
        self.first_process = jax.process_index() == 0
        self._reranker: AbsReranker | None = None
        self._programs: set[tuple[Any, Compression | None]] = set()

    def run(self) -> TrainingResult:
        identity = Identity.of(self.spec, self.settings, self.data.digests, self.steps, self.groups)
        if self.first_process:
            identity.enter(self.out, overwrite=self.settings.overwrite_output_dir)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("the folder of the run is there")
        self._load()
        with ExitStack() as stack:
            self.signals = stack.enter_context(StopSignals(at_once=False))
            folder = self.out / "checkpoints"
            folder.mkdir(exist_ok=True)
            shapes = {path: array.shape for path, array in self.trained.items()}
            limit = self.settings.save_total_limit
            self.checkpoints = stack.enter_context(closing(Checkpoints(folder, self.step, shapes, limit, self._best)))
            done = self.checkpoints.latest or 0
            state = self.step.init(self.trained) if done == 0 else self.checkpoints.restore(done)
            del self.trained
            written = self.first_process
            self.losses = stack.enter_context(closing(Curve(self.out / "curve.jsonl", done, written=written)))
            self.evaluations = stack.enter_context(
                closing(Curve(self.out / "evaluation.jsonl", done, written=written))
            )
            targets = self.settings.report_to if written else ()
            self.reports = stack.enter_context(closing(Reports(targets, self.out, self.settings.identity())))
            if done:
                logger.info("going on after step %d of %d", done, self.steps)
            state, done = self._steps(state, done)
            return self._finish(state, done)

    def _load(self) -> None:
        """The parameters, those that are trained and the others, and the step."""
        settings, spec = self.settings, self.spec
        module = spec.module(self.dtypes)
        shardings = parameter_shardings(module, self.mesh, DEFAULT_RULES)
        head_key, factor_key, self.dropout_key = jax.random.split(jax.random.key(settings.seed), 3)
        new = False
        if settings.from_raw:
            params, new = load_raw(spec, module, self.dtypes, shardings, head_key)
        else:
            params = load_arrays(spec.weights(module), self.dtypes.stored, shardings)
        self.lora = settings.lora(new_head=new or spec.readout.head == "dense")
        if "adapter" in settings.export and self.lora is not None:
            adapter_tensors(spec, self.lora)  # what cannot be written is said before the work
        self.trained, self.frozen = lora.start(params, shardings, self.lora, factor_key)
        shapes = {path: array.shape for path, array in self.trained.items()}
        self.step = TrainingStep(
            module,
            self.mesh,
            self.dtypes,
            lora.trained_shardings(shardings, shapes),
            objective=settings.objective,
            optimizer=settings.optimizer(self.steps),
            lora=self.lora,
            remat=settings.gradient_checkpointing,
        )
        self.compressions = None
        if spec.model_class is RerankerModelClass.DECODER_ONLY_LIGHTWEIGHT:
            suffix = len(spec.template(spec.settings).suffix)
            layers = [layer for layer in settings.compress_layers if 0 < layer < spec.readout.layers[-1]]
            self.compressions = Compressions(layers, settings.compress_ratios, suffix, settings.seed)

    def _steps(self, state: State, done: int) -> tuple[State, int]:
        """Run the steps that are left, with evaluations and checkpoints."""
        settings = self.settings
        show = sys.stderr.isatty() if settings.show_progress_bar is None else settings.show_progress_bar
        dropout = self.lora is not None and self.lora.dropout > 0
        pending: deque[tuple[int, Metrics, BatchInfo]] = deque()
        if self._due(done) and not any(point["step"] == done for point in self.evaluations.points):
            self._evaluate(state, done)  # the run was stopped before it
        with tqdm(total=self.steps, initial=done, desc="train", unit="step", disable=not show) as bar:
            self.meter = _Meter(bar, self.reports, settings.logging_steps)
            for batch, info in self._batches(done):
                if self._stops_early():
                    logger.info("stopped early after step %d", done)
                    break
                key = jax.random.fold_in(self.dropout_key, done) if dropout else None
                compression = self._compression(done, batch)
                self._programs.add((batch.input_ids.shape, compression))
                placed = place(self._in_cache(batch), self.mesh)
                state, metrics = self.step(state, self.frozen, placed, self.spec.readout, compression, key)
                done += 1
                pending.append((done, metrics, info))
                stopping = self._stopping()
                saving = done % settings.save_steps == 0 or done == self.steps or self._due(done) or stopping
                while len(pending) > (0 if saving else AHEAD):
                    self._record(*pending.popleft())
                if saving:
                    self.checkpoints.save(done, state)
                if stopping:
                    break
                if self._due(done):
                    self._evaluate(state, done)
        if self._stopping():
            logger.info("stopped after step %d of %d; the same command goes on", done, self.steps)
            self.signals.check()
        return state, done

    def _batches(self, done: int) -> Iterator[tuple[Batch, BatchInfo]]:
        return iter(self.data.batches(done)) if done < self.steps else iter(())

    def _compression(self, step: int, batch: Batch) -> Compression | None:
        return None if self.compressions is None else self.compressions.at(step, batch)

    def _in_cache(self, batch: Batch) -> Batch:
        """The batch in micro batches whose activations stay in a CPU's cache; elsewhere as it is."""
        platform, multiple = self.mesh.devices.flat[0].platform, self.mesh.shape[DATA]
        if platform != "cpu" or self.settings.loss not in MEANS_OVER_GROUPS:
            return batch
        return cut(batch, CPU_TOKENS * multiple, multiple)

    def _stopping(self) -> bool:
        """Whether a signal to stop came, to any process."""
        if jax.process_count() == 1:
            return self.signals.received is not None
        return bool(np.any(multihost_utils.process_allgather(np.asarray(self.signals.received is not None))))

    def _due(self, done: int) -> bool:
        """Whether there is an evaluation after this step; step 0 shows the model as it came."""
        return self.evaluation is not None and (done % self.eval_steps == 0 or done == self.steps)

    def _record(self, step: int, metrics: Metrics, info: BatchInfo) -> None:
        """Write the figures of a step, which is finished then."""
        loss, norm = float(metrics.loss), float(metrics.gradient_norm)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            last = self.checkpoints.latest
            good = "there is no checkpoint yet" if last is None else f"the last good checkpoint is that of step {last}"
            raise FloatingPointError(
                f"step {step}: the loss is {loss} and the gradient norm {norm}; {good} in {self.checkpoints.folder}. "
                f"Lower learning_rate ({self.settings.learning_rate:g}), and give another output_dir"
            )
        figures = {"loss": loss, "gradient_norm": norm, "learning_rate": float(metrics.learning_rate)}
        self.losses.add({"step": step, "epoch": info.epoch, **figures})
        self.meter.add(step, figures, info)

    def _evaluate(self, state: State, step: int) -> None:
        assert self.evaluation is not None
        reranker = self._reranker_of(state)
        show = bool(self.settings.show_progress_bar)
        result = evaluate(
            lambda pairs: reranker.compute_score(
                pairs, max_length=self.settings.eval_max_length, show_progress_bar=show
            ),
            self.evaluation,
            measures=tuple(dict.fromkeys(("nDCG@10", "RR@10", self.settings.metric_for_best_model))),
        )
        reranker.params = {}
        measures = {name: float(value) for name, value in result.mean.items()}
        self.evaluations.add({"step": step, **measures})
        self.reports.write(step, measures)
        logger.info("step %d: %s", step, ", ".join(f"{name} {value:.4f}" for name, value in measures.items()))

    def _best(self) -> int | None:
        """The step whose evaluation was the best one; None before the first, and the model as it came is left out."""
        name = self.settings.metric_for_best_model
        found = [(point[name], point["step"]) for point in self.evaluations.points if point["step"]]
        return max(found)[1] if found else None

    def _stops_early(self) -> bool:
        patience, best = self.settings.early_stopping_patience, self._best()
        later = sum(point["step"] > best for point in self.evaluations.points) if best else 0
        return patience is not None and later >= patience

    def _reranker_of(self, state: State) -> AbsReranker:
        """A reranker with the present parameters, merged."""
        params = lora.merge(state.trained, self.frozen, self.lora)
        if self._reranker is None:
            self._reranker = class_of(self.spec).from_spec(self.spec, params, self.mesh, self.dtypes)
        self._reranker.params = params
        return self._reranker

    def _finish(self, state: State, done: int) -> TrainingResult:
        """Write the model, and what else is asked for."""
        best, step = self._best(), done
        if self.settings.load_best_model_at_end and best is not None and best != done:
            state, step = self.checkpoints.restore(best), best
        params, trained = lora.merge(state.trained, self.frozen, self.lora), state.trained
        if spans_processes(self.mesh):
            params, trained = _on_this_host(params), _on_this_host(trained)
        if self.first_process:
            plot(self.out, self.losses.points, self.evaluations.points)
            card = model_card(
                self.spec, self.settings, self.data.digests, self.losses.points, self.evaluations.points, step
            )
            adapter = trained if "adapter" in self.settings.export else None
            outputs = Outputs(self.out, self.spec, self.dtypes, card, "pytorch" in self.settings.export, self.lora)
            if jax.process_count() == 1:
                outputs.write(params, adapter)
            else:
                outputs.write_alone(params, adapter)
        return TrainingResult(self.out / MODEL, step, done, tuple(self.evaluations.points), len(self._programs))


def _on_this_host(arrays: Mapping[str, jax.Array]) -> dict[str, Any]:
    """Whole numpy copies of arrays that several processes have parts of."""
    return {path: multihost_utils.process_allgather(array, tiled=True) for path, array in arrays.items()}


class _Meter:
    """Speed and padding since the last report, on the bar and in the reports."""

    def __init__(self, bar: "tqdm[Any]", reports: Reports, every: int) -> None:
        self._bar, self._reports, self._every = bar, reports, every
        self._reset()

    def _reset(self) -> None:
        self._start, self._groups, self._tokens, self._computed = time.perf_counter(), 0, 0, 0

    def add(self, step: int, figures: Mapping[str, float], info: BatchInfo) -> None:
        self._groups += info.groups
        self._tokens += info.real_tokens
        self._computed += info.computed_tokens
        self._bar.update()
        if step % self._every:
            return
        seconds = time.perf_counter() - self._start
        speed = {
            "examples_per_second": self._groups / seconds,
            "tokens_per_second": self._tokens / seconds,
            "padding": 1.0 - self._tokens / self._computed,
        }
        self._bar.set_postfix_str(
            f"loss {figures['loss']:.4f}, {speed['examples_per_second']:.1f} examples/s, "
            f"{speed['tokens_per_second']:,.0f} tokens/s, padding {speed['padding']:.0%}"
        )
        self._reports.write(step, {**figures, **speed})
        self._reset()
