"""The checkpoints of a run: state and step, through orbax's CheckpointManager."""

import errno
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from flax_rerank.params import Shape
from flax_rerank.training.step import State, TrainingStep

ROOM = 64 << 20  # on the disk, for what is beside the arrays


class Checkpoints:
    """The last checkpoints of a run, and the best one. A checkpoint appears when it is complete, never before.

    Args:
        folder: where they are.
        step: says which arrays a state has, and where they go.
        shapes: of the trained parameters.
        limit: how many of the last ones are kept.
        best: says which step is the best one so far.
    """

    def __init__(
        self,
        folder: Path,
        step: TrainingStep,
        shapes: Mapping[str, Shape],
        limit: int,
        best: Callable[[], int | None],
    ) -> None:
        import orbax.checkpoint as ocp

        class Best(ocp.checkpoint_managers.PreservationPolicy):
            def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
                return [each.step == best() for each in checkpoints]

        latest = ocp.checkpoint_managers.LatestN(limit)
        policy = ocp.checkpoint_managers.AnyPreservationPolicy([latest, Best()])
        # The next step donates the arrays, so they are written before `save` returns.
        options = ocp.CheckpointManagerOptions(preservation_policy=policy, enable_async_checkpointing=False)
        self.folder = folder
        self._args = ocp.args
        self._abstract = step.abstract_state(shapes)
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    @property
    def latest(self) -> int | None:
        """The step of the last checkpoint, or None."""
        return self._manager.latest_step()

    def restore(self, step: int) -> State:
        """The state after `step` steps, on the devices."""
        return self._manager.restore(step, args=self._args.StandardRestore(self._abstract))

    def save(self, step: int, state: State) -> None:
        """Write the state after `step` steps.

        Raises:
            OSError: the disk is full. Earlier checkpoints stay.
        """
        if step in self._manager.all_steps():
            return
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        free = shutil.disk_usage(self.folder).free
        if free < size + ROOM:
            reason = f"No space left on device: a checkpoint takes {size:,} bytes, {free:,} are free"
            raise OSError(errno.ENOSPC, f"{reason}; the last one is that of step {self.latest}", str(self.folder))
        self._manager.save(step, args=self._args.StandardSave(state), force=True)

    def close(self) -> None:
        """Wait until all is written."""
        self._manager.close()
