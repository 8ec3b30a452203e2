"""Architectures: frozen config dataclasses and nnx modules that score token ids. They read no files and no text;
attention alone looks at the devices it is traced for, to choose a kernel."""

from flax_rerank.models.compression import Compression
from flax_rerank.models.decoder import Decoder, DecoderConfig
from flax_rerank.models.encoder import Encoder, EncoderConfig
from flax_rerank.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from flax_rerank.models.readout import Readout

__all__ = [
    "Compression",
    "Decoder",
    "DecoderConfig",
    "Encoder",
    "EncoderConfig",
    "EncoderDecoder",
    "EncoderDecoderConfig",
    "Readout",
]
