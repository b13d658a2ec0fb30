"""A clip of the fine world made by hand, of which the tests know what it shows."""

from __future__ import annotations

from vl3edge.models.demo.fine.world import Shot, Thing, World

WORLD = World(
    shots=(
        Shot(
            start=0,
            end=3,
            ground="dotted",
            texture_seed=3,
            cameras=((0.0, 0.0, 1.0), (14.0, 0.0, 1.0), (28.0, 0.0, 1.0)),
            things=(
                Thing("sign", "", 0, 2, ((0.0, 42.0),) * 3, ("7", "7", "C")),
                Thing("circle", "red", 0, 1, ((-28.0, -28.0), (-14.0, -28.0))),
                Thing("ring", "blue", 2, 2, ((56.0, -14.0),)),
            ),
        ),
        Shot(
            start=3,
            end=5,
            ground="striped",
            texture_seed=4,
            cameras=((0.0, 0.0, 1.0), (0.0, 0.0, 1.5)),
            things=(
                Thing("sign", "", 3, 4, ((-28.0, 0.0),) * 2, ("A", "A")),
                Thing("cross", "white", 3, 4, ((14.0, 14.0),) * 2),
                Thing("square", "red", 4, 4, ((14.0, -28.0),)),
            ),
        ),
    ),
    fps=4,
    noise=0.0,
    exposure=(1.0, 1.0),
)
