"""A spec and its parameters to a folder: a Flax checkpoint, or a Hugging Face folder for PyTorch."""

from flax_rerank.saving.flax_checkpoint import save
from flax_rerank.saving.hugging_face import save_pretrained

__all__ = ["save", "save_pretrained"]
