"""Architectures: config dataclasses and nnx modules. Nothing here touches files, text or devices."""

from flax_rerank.models.decoder import Decoder, DecoderConfig
from flax_rerank.models.encoder import Encoder, EncoderConfig

__all__ = ["Decoder", "DecoderConfig", "Encoder", "EncoderConfig"]
