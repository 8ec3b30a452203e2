"""Convert checkpoints between PyTorch and Flax, inspect them, and verify a conversion."""

from flax_rerank.conversion.to_flax import Conversion, convert
from flax_rerank.conversion.to_pytorch import export_checkpoint

__all__ = ["Conversion", "convert", "export_checkpoint"]
