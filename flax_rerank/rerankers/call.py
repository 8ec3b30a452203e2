"""What scoring makes of a spec and settings: the template, the layers to score after, the compression."""

from dataclasses import dataclass

import numpy as np

from flax_rerank.batching import Shape
from flax_rerank.models.compression import Compression
from flax_rerank.models.decoder import DecoderConfig
from flax_rerank.models.readout import Readout
from flax_rerank.operations import Sizes, sizes_of
from flax_rerank.scoring import Static
from flax_rerank.settings import LayerwiseSettings, LightweightSettings, LLMSettings, Settings
from flax_rerank.spec import Spec
from flax_rerank.text.pairs import TokenizedPairs
from flax_rerank.text.prompts import Template


@dataclass(frozen=True)
class Call:
    """One call's settings, resolved against the model.

    Attributes:
        settings: with the call's overrides.
        template: what is put around query and passage.
        readout: the layers that are scored, ascending, and their heads.
        layers: the layers that were asked for, in that order; None for rerankers with one score.
        outputs: for each of these, the model's output.
        compressed: the layers before which passages are compressed, ascending.
        sizes: those of the layers, where what pairs begin with may be computed once; None where it may not.
    """

    settings: Settings
    template: Template
    readout: Readout
    layers: tuple[int, ...] | None = None
    outputs: tuple[int, ...] = (0,)
    compressed: tuple[int, ...] = ()
    sizes: Sizes | None = None

    @property
    def most_around(self) -> int:
        """Tokens around the passage of any input, at most; 0 if no passage is compressed."""
        template = self.template
        most = template.special_tokens + min(template.query_max_length, template.capacity)
        return most if self.compressed else 0

    def around(self, pairs: TokenizedPairs) -> np.ndarray:
        """int32 [pairs], tokens around each passage; 0 if no passage is compressed."""
        around = pairs.passage_starts + np.int32(len(self.template.suffix))
        return around if self.compressed else np.zeros_like(around)

    def static(self, shape: Shape) -> Static:
        """The model's static arguments for a step of this shape."""
        if not isinstance(self.settings, LightweightSettings) or not self.compressed:
            return self.readout, None
        ratio = self.settings.compress_ratio
        lengths = shape.compressed(ratio, len(self.compressed))
        at = tuple(zip(self.compressed, lengths, strict=True))
        return self.readout, Compression(at, ratio, len(self.template.suffix))


def resolve(spec: Spec, settings: Settings) -> Call:
    """What scoring makes of these settings.

    Raises:
        ValueError: a layer without a head, a layer to compress that the model does not have, or lengths beyond the
            model's positions; a calibration that is asked for and missing, or that is for another layer.
    """
    template = spec.template(settings)
    if settings.normalize == "calibrated" and settings.calibration is None:
        raise ValueError("normalize is 'calibrated', and there is no calibration: flax-rerank calibrate makes one")
    if not isinstance(settings, LayerwiseSettings):
        return Call(settings, template, spec.readout, sizes=_sizes_to_share(spec, settings))
    asked = settings.cutoff_layers
    if asked is None:
        asked = spec.readout.layers[-1]
    asked = (asked,) if isinstance(asked, int) else tuple(asked)
    layers = tuple(sorted(set(asked)))
    calibration = settings.calibration
    if settings.normalize == "calibrated" and calibration is not None and layers != (calibration.layer,):
        raise ValueError(
            f"the calibration is for the scores after layer {calibration.layer}, not for cutoff_layers {list(layers)}"
        )
    heads = None
    compressed: tuple[int, ...] = ()
    if isinstance(settings, LightweightSettings):
        heads = tuple(range(len(layers))) if settings.head_index == "reference" else None
    readout = spec.readout.at(layers, heads)
    if isinstance(settings, LightweightSettings):
        compressed = _compressed(spec, settings, layers[-1])
    sizes = None if compressed else _sizes_to_share(spec, settings)
    return Call(settings, template, readout, asked, tuple(map(layers.index, asked)), compressed, sizes)


def _sizes_to_share(spec: Spec, settings: Settings) -> Sizes | None:
    """The layers' sizes, if keys and values of a token depend on nothing but those before it, and the last is scored.
    Rotary angles that grow with the input (no longest input) depend on all of it."""
    config = spec.config
    causal = isinstance(config, DecoderConfig) and config.causal and config.max_length is not None
    asked = isinstance(settings, LLMSettings) and settings.share_prefix
    return sizes_of(config, spec.readout) if asked and causal and spec.readout.position == "last" else None


def _compressed(spec: Spec, settings: LightweightSettings, last: int) -> tuple[int, ...]:
    if settings.compress_ratio == 1:
        return ()
    if spec.prompt_format.is_one_text:
        raise ValueError("compress_ratio must be 1: this prompt format makes one text of query and passage")
    depth = spec.config.num_hidden_layers
    wrong = [layer for layer in settings.compress_layers if not 0 <= layer < depth]
    if wrong:
        raise ValueError(f"compress_layers {wrong}: the model has layers 0 to {depth - 1}")
    # Layer 0 is left out, as in FlagEmbedding.
    return tuple(layer for layer in sorted(set(settings.compress_layers)) if 0 < layer < last)
