"""The vision path's weights as stored in a bundle, for graphs that share their bytes.

`vision.onnx` and the projectors store them as [in, out], the layout of every product here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx
import torch
from onnx import TensorProto

from vl3edge.models.config import ModelConfig
from vl3edge.models.projector import Projector
from vl3edge.models.vision import VisionEncoder
from vl3edge.models.weight_map import WeightSource

from .vision_int8 import CODES, SCALES


def stored_vision(config: ModelConfig, folder: Path) -> dict[str, TensorProto]:
    """The encoder's, by canonical names; of a weight in 8 bits its codes, and its scales under the name + `SCALES`."""
    with torch.device("meta"):
        encoder = VisionEncoder(config)
    return _stored(folder / "vision.onnx", encoder.sources())


def stored_projector(config: ModelConfig, folder: Path) -> dict[str, TensorProto]:
    """The projector's, by canonical names; both of a bundle have the same."""
    with torch.device("meta"):
        projector = Projector(config, config.image.merge_size)
    return _stored(folder / "projector-image.onnx", projector.sources())


def _stored(path: Path, sources: Mapping[str, WeightSource]) -> dict[str, TensorProto]:
    graph = onnx.load(path, load_external_data=False).graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    found = {}
    for name, source in sources.items():
        if name in tensors:
            found[source.name] = tensors[name]
        else:
            found[source.name] = tensors[name + CODES]
            found[source.name + SCALES] = tensors[name + SCALES]
    return found
