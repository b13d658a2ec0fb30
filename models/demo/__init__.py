"""The demo model: a VideoLLaMA3 of 1.7 M parameters, really trained, on clips of a small world rendered on the fly.

It is how the project measures accuracy: captions, attributes and event times are clearly right or wrong, so pruning,
quantization and engines can be judged by their effect on the answers. `checkpoint/` holds it in the layout of the
released models.

    python -m vl3edge.models.demo.train --out DIR        retrains it from scratch
    python -m vl3edge.models.demo.evaluate               held-out figures; --bundle DIR for an exported bundle
    python -m vl3edge.models.demo.clips PATH             writes a held-out clip as MP4
"""
