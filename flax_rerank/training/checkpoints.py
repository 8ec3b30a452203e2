"""The checkpoints of a run: state and step, through orbax's CheckpointManager."""

import errno
import shutil
from collections.abc import Mapping
from pathlib import Path

import jax

from flax_rerank.training.step import State, TrainingStep

ROOM = 64 << 20  # on the disk, for what is beside the arrays


class Checkpoints:
    """The last checkpoints of a run, and the best one. A checkpoint appears when it is complete, never before.

    Args:
        folder: where they are.
        step: says which arrays a state has, and where they go.
        shapes: of the trained parameters.
        limit: how many of the last ones are kept.
        metric: the measure whose highest value is the best.
    """

    def __init__(
        self, folder: Path, step: TrainingStep, shapes: Mapping[str, tuple[int, ...]], limit: int, metric: str
    ) -> None:
        import orbax.checkpoint as ocp

        policies = ocp.checkpoint_managers
        self.folder = folder
        self._ocp = ocp
        self._abstract = step.abstract_state(shapes)
        keep = policies.AnyPreservationPolicy(
            [
                policies.LatestN(limit),
                policies.BestN(get_metric_fn=lambda metrics: metrics[metric], n=1, keep_checkpoints_without_metrics=False),
            ]
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=keep,
            enable_async_checkpointing=False,
            best_fn=lambda metrics: metrics[metric],
        )
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    @property
    def latest(self) -> int | None:
        """The step of the last checkpoint; None if there is none."""
        return self._manager.latest_step()

    @property
    def best(self) -> int | None:
        """The step of the best checkpoint that was evaluated; None if there is none."""
        return self._manager.best_step()

    def restore(self, step: int) -> State:
        """The state after `step` steps, on the devices."""
        return self._manager.restore(step, args=self._ocp.args.StandardRestore(self._abstract))

    def save(self, step: int, state: State, metrics: Mapping[str, float] | None = None) -> None:
        """Write the state after `step` steps, and what its evaluation gave.

        Raises:
            OSError: the disk is full. Earlier checkpoints stay.
        """
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        free = shutil.disk_usage(self.folder).free
        if free < size + ROOM:
            reason = f"No space left on device: a checkpoint takes {size:,} bytes, {free:,} are free"
            raise OSError(errno.ENOSPC, f"{reason}; the last one is that of step {self.latest}", str(self.folder))
        if step in self._manager.all_steps():
            self._manager.delete(step)
        self._manager.save(
            step, args=self._ocp.args.StandardSave(state), metrics=None if metrics is None else dict(metrics), force=True
        )

    def close(self) -> None:
        """Wait until all is written."""
        self._manager.close()
