"""Devices, the mesh over them, and which parameter is split over which of its axes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

DATA, MODEL = "data", "model"

Devices: TypeAlias = str | int | jax.Device | Sequence[str | int | jax.Device] | None
MeshShape: TypeAlias = str | Mapping[str, int] | Mesh | None

# The field of a model's config that counts what a logical axis is made of: an axis of heads is split between heads.
SIZES = {
    "vocab": ("vocab_size",),
    "embed": ("hidden_size",),
    "heads": ("num_attention_heads",),
    "kv_heads": ("num_key_value_heads", "num_attention_heads"),
    "mlp": ("intermediate_size",),
    "layers": ("num_hidden_layers",),
}


@dataclass(frozen=True)
class ShardingRules:
    """The mesh axis over which each logical axis of the parameters is split; None replicates.

    Heads and feed-forward are split as in Megatron-LM (Shoeybi et al., 2019): each layer then adds up two partial
    results. Key/value heads that do not divide are replicated; any other axis that does not divide is refused.
    """

    vocab: str | None = MODEL
    embed: str | None = None
    heads: str | None = MODEL
    kv_heads: str | None = MODEL
    mlp: str | None = MODEL
    layers: str | None = None


DEFAULT_RULES = ShardingRules()


class MeshError(ValueError):
    """A mesh that cannot be: it is written wrongly, takes another number of devices, or does not suit the model.

    Attributes:
        axis: the logical axis of the parameters that does not divide over the mesh; None if that is not the reason.
    """

    def __init__(self, message: str, axis: str | None = None) -> None:
        super().__init__(message)
        self.axis = axis


def find_devices(devices: Devices = None) -> list[jax.Device]:
    """JAX devices of what a caller names them by.

    Args:
        devices: None (all local devices of the default platform), a platform ("cpu", "gpu", "cuda", "tpu"),
            a platform and an index ("cuda:0", "tpu:3"), an index, a JAX device, or a list of these.

    Raises:
        ValueError: no such device.
    """
    if devices is None:
        return jax.local_devices()
    if isinstance(devices, str | int | jax.Device):
        devices = [devices]
    found: list[jax.Device] = []
    for device in devices:
        found += [device] if isinstance(device, jax.Device) else _find(device)
    if not found:
        raise ValueError("devices is an empty list; None stands for all devices")
    return list(dict.fromkeys(found))


def host_device() -> str | int:
    """One CPU device, for what needs no accelerator; where JAX was told to have none, the first of those it has."""
    try:
        find_devices("cpu:0")
    except ValueError:
        return 0
    return "cpu:0"


def make_mesh(devices: Devices = None, shape: MeshShape = None) -> Mesh:
    """A mesh with the axes ("data", "model").

    Args:
        devices: as in `find_devices`. Without it, a shape that takes more than the local devices is laid over those
            of all processes.
        shape: sizes of the axes, as "data=4,model=2" or a mapping; an axis that is not named is 1, but "data" takes
            all devices that are left. None puts all devices on "data". Or a ready mesh with these two axes.

    Raises:
        MeshError: the shape is not of this form, or takes more or fewer devices than exist.
        ValueError: devices that do not exist, or that a ready mesh has already.
    """
    if isinstance(shape, Mesh):
        if devices is not None:
            raise ValueError("a ready mesh has its devices: give mesh or devices, not both")
        if set(shape.axis_names) != {DATA, MODEL}:
            raise ValueError(f"the mesh has the axes {list(shape.axis_names)}; it takes {DATA!r} and {MODEL!r}")
        return Mesh(shape.devices, shape.axis_names, axis_types=(AxisType.Auto, AxisType.Auto))
    sizes = _parse(shape)
    chosen = find_devices(devices)
    model = sizes.get(MODEL, 1)
    if devices is None and sizes.get(DATA, 1) * model > len(chosen):
        chosen = jax.devices()
    data = sizes.get(DATA, max(len(chosen) // model, 1))
    if data * model != len(chosen):
        raise MeshError(
            f"mesh data={data},model={model} takes {data * model} devices; there are {len(chosen)} "
            f"({', '.join(map(str, chosen[:4]))}{', ...' if len(chosen) > 4 else ''})"
        )
    return jax.make_mesh((data, model), (DATA, MODEL), axis_types=(AxisType.Auto, AxisType.Auto), devices=chosen)


def parameter_shardings(module: nnx.Module, mesh: Mesh, rules: ShardingRules) -> dict[str, NamedSharding]:
    """Where each parameter goes, by its dotted path.

    Args:
        module: a model of `flax_rerank.models`; an abstract one will do.
        mesh: with every axis that the rules name.
        rules: logical axes to mesh axes.

    Raises:
        MeshError: a dimension does not divide over its mesh axis.
        ValueError: the mesh does not have an axis of the rules, or they split two axes of a parameter over one.
    """
    config = module.config  # type: ignore[attr-defined]
    targets = {axis: _target(axis, config, mesh, rules) for axis in SIZES}
    shardings = {}
    for path, param in nnx.to_flat_state(nnx.state(module)):
        name = ".".join(map(str, path))
        spec = [None if axis is None else targets[axis] for axis in param.get_metadata("axes")]
        used = [axis for axis in spec if axis is not None]
        if len(used) != len(set(used)):
            raise ValueError(f"the sharding rules split two axes of {name} over the same mesh axis: {spec}")
        shardings[name] = NamedSharding(mesh, PartitionSpec(*spec))
    return shardings


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device has the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def over_data(mesh: Mesh) -> NamedSharding:
    """The first axis is split over the data axis."""
    return NamedSharding(mesh, PartitionSpec(DATA))


def spans_processes(mesh: Mesh) -> bool:
    """Whether some of the mesh's devices belong to other processes."""
    return any(device.process_index != jax.process_index() for device in mesh.devices.flat)


def _target(axis: str, config: Any, mesh: Mesh, rules: ShardingRules) -> str | None:
    """The mesh axis to split a logical axis over, if any."""
    target = getattr(rules, axis)
    if target is None:
        return None
    if target not in mesh.shape:
        raise ValueError(f"the sharding rules split {axis} over {target!r}; the mesh has {', '.join(mesh.axis_names)}")
    parts = mesh.shape[target]
    field = next(field for field in SIZES[axis] if hasattr(config, field))
    size = getattr(config, field)
    if size % parts == 0:
        return target
    if axis == "kv_heads":
        return None
    divisors = [count for count in range(1, parts) if size % count == 0 and mesh.size % count == 0]
    raise MeshError(
        f"{field} is {size}, which does not divide over {target}={parts}: take {target}={divisors[-1]}, or replicate "
        f"it (sharding_rules=ShardingRules({axis}=None), --replicate {axis})",
        axis,
    )


def _parse(shape: str | Mapping[str, int] | None) -> dict[str, int]:
    if isinstance(shape, str):
        try:
            pairs = [part.split("=") for part in shape.split(",")]
            sizes = {axis.strip(): int(size) for axis, size in pairs}
            if len(sizes) < len(pairs):
                raise ValueError("an axis is named twice")
        except ValueError as error:
            raise MeshError(f"mesh {shape!r} is not of the form data=4,model=2") from error
    else:
        sizes = dict(shape or {})
    if not set(sizes) <= {DATA, MODEL} or any(size < 1 for size in sizes.values()):
        raise MeshError(f"mesh {shape!r}: the axes are {DATA} and {MODEL}, each at least 1, as in data=4,model=2")
    return sizes


def _find(name: str | int) -> list[jax.Device]:
    platform, _, index = ("", "", str(name)) if isinstance(name, int) else name.partition(":")
    try:
        candidates = jax.local_devices(backend=platform or None)
    except RuntimeError as error:
        known = ", ".join(str(device) for device in jax.local_devices())
        raise ValueError(f"devices: no device {name!r} here ({error}); there are: {known}") from error
    if not index:
        return candidates
    if not index.isdecimal() or int(index) >= len(candidates):
        raise ValueError(f"devices: no device {name!r} here; there are: {', '.join(map(str, candidates))}")
    return [candidates[int(index)]]
