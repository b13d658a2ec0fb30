"""What float16 costs the vision encoder, layer by layer, and what keeping parts of it in float32 saves.

    python benchmarks/fp16_drift.py CHECKPOINT MEDIA [MEDIA …] [--name NAME]

The encoder is computed in float32 with every value rounded to float16 where the variant stores one; products sum in
float32, as tensor cores do. Each variant is compared with plain float32, after each layer, as the length of the
difference over the length of the value. Also the largest values, which must stay below 65,504. Adds to
benchmarks/results/fp16_drift.json under NAME.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from machine import describe
from torch import Tensor
from torch.nn import functional as F

from vl3edge.models.checkpoint import Checkpoint
from vl3edge.models.vision import VisionEncoder, VisionLayer, rotate
from vl3edge.runtime.media.image import load_image
from vl3edge.runtime.media.resize import resize_rgb
from vl3edge.runtime.media.video import SamplingPlan, open_video

RESULTS = Path(__file__).parent / "results" / "fp16_drift.json"


def half(x: Tensor) -> Tensor:
    return x.half().float()


def whole(x: Tensor) -> Tensor:
    return x


@dataclass(frozen=True)
class Variant:
    """Which values are stored in float16: inputs and outputs of products, scores, and everything in between."""

    name: str
    products: bool
    scores: bool
    between: bool
    residual: bool


VARIANTS = (
    Variant("products", True, False, False, False),
    Variant("products and scores", True, True, False, False),
    Variant("all but the residual stream", True, True, True, False),
    Variant("everything", True, True, True, True),
)
SHIPPED = "products"


class Encoder:
    """The float32 encoder, run with roundings; `largest` collects the largest absolute value of each kind."""

    def __init__(self, encoder: VisionEncoder, variant: Variant | None) -> None:
        self.encoder = encoder
        wanted = variant or Variant("float32", False, False, False, False)
        self.product = half if wanted.products else whole
        self.score = half if wanted.scores else whole
        self.between = half if wanted.between else whole
        self.residual = half if wanted.residual else whole
        self.largest = {"residual stream": 0.0, "scores": 0.0, "MLP": 0.0}

    def run(self, frames: Tensor) -> list[Tensor]:
        """The residual stream after the embedding and after each layer, and the features."""
        encoder = self.encoder
        count, height, width, _ = frames.shape
        rows, columns = height // encoder.patch_size, width // encoder.patch_size
        cos, sin = encoder.rotary(rows, columns)
        pixels = self.between(encoder.patches(frames)).reshape(count, rows * columns, -1)
        hidden = self.residual(self.linear(encoder.patch_embedding, pixels))
        states = [hidden]
        for layer in encoder.layers:
            hidden = self.layer(layer, hidden, cos, sin)
            states.append(hidden)
        return [*states, self.between(encoder.post_layernorm(hidden))]

    def linear(self, dense: Any, x: Tensor) -> Tensor:
        return self.product(self.product(x) @ self.product(dense.weight) + self.product(dense.bias))

    def layer(self, layer: VisionLayer, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        heads = layer.num_heads
        x = self.between(layer.layer_norm1(hidden))
        q, k, v = (self.linear(layer.self_attn[name], x) for name in ("q_proj", "k_proj", "v_proj"))
        q, k = (self.between(rotate(each, cos, sin, heads)) for each in (q, k))
        q, k, v = (each.unflatten(-1, (heads, -1)).transpose(1, 2) for each in (q, k, v))
        q, k = self.product(q * q.shape[-1] ** -0.5), self.product(k)
        scores = self.score(q @ k.transpose(-1, -2))
        shares = self.score(scores.softmax(-1))
        attended = self.product(self.product(shares) @ v).transpose(1, 2).flatten(-2)
        hidden = self.residual(hidden + self.linear(layer.self_attn["out_proj"], attended))
        inside = self.linear(layer.mlp["fc1"], self.between(layer.layer_norm2(hidden)))
        active = self.between(F.gelu(inside, approximate=layer.approximate))
        hidden = self.residual(hidden + self.linear(layer.mlp["fc2"], active))
        for name, value in (("residual stream", hidden), ("scores", scores), ("MLP", inside)):
            self.largest[name] = max(self.largest[name], float(value.abs().max()))
        return hidden


def relative(value: Tensor, reference: Tensor) -> float:
    return float((value.double() - reference.double()).norm() / reference.double().norm())


def frames_of(path: Path, block: int) -> Tensor:
    """Up to four frames of a video, or an image, about 20 blocks large."""
    if path.suffix in (".jpg", ".png"):
        images = [load_image(path)]
    else:
        reader = open_video(path, SamplingPlan(max_frames=4, fps=1.0))
        images = list(reader.read((reader.height, reader.width)).frames)
    height, width = images[0].shape[:2]
    scale = (20 * block**2 / (height * width)) ** 0.5 if height * width > 20 * block**2 else 1.0
    size = tuple(max(1, round(side * scale / block)) * block for side in (height, width))
    return torch.stack([torch.from_numpy(resize_rgb(image, size).copy()) for image in images])


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("media", type=Path, nargs="+")
    parser.add_argument("--name", default="demo")
    options = parser.parse_args()
    encoder = VisionEncoder.from_checkpoint(Checkpoint.open(options.checkpoint))
    clips = [frames_of(path, 2 * encoder.patch_size) for path in options.media]
    plain = Encoder(encoder, None)
    references = [plain.run(frames) for frames in clips]
    drift = {}
    for variant in VARIANTS:
        runner = Encoder(encoder, variant)
        per_clip = [
            [relative(value, wanted) for value, wanted in zip(runner.run(frames), reference, strict=True)]
            for frames, reference in zip(clips, references, strict=True)
        ]
        worst = [max(values) for values in zip(*per_clip, strict=True)]
        drift[variant.name] = {"layers": [round(value, 7) for value in worst[:-1]], "features": round(worst[-1], 7)}
        print(f"{variant.name:<30} features {worst[-1]:.2e}, worst layer {max(worst[:-1]):.2e}")
    print(plain.largest)
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    results[options.name] = {
        "machine": describe(),
        "media": [path.name for path in options.media],
        "frames": [list(frames.shape[:3]) for frames in clips],
        "layers": len(encoder.layers),
        "shipped": SHIPPED,
        "relative_difference": drift,
        "largest_values": {name: round(value, 1) for name, value in plain.largest.items()},
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
