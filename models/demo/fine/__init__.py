"""The fine model: a second tiny VideoLLaMA3, for a world in which detail is small, local and short-lived.

Each of the demo model's tokens describes the whole frame, so its answers survive any pruning, even at random. Here a
token knows only its own position and what is on it, objects are one to one and a half tokens wide, and most questions
are about one place at one time: what a sign says at a certain second, how many shapes there are then, when one appears
far from anything that moves. So losing tokens, or their precision, costs answers.

    python -m vl3edge.models.demo.fine.train --out DIR       trains it from scratch, or goes on where a run stopped
    python -m vl3edge.models.demo.fine.evaluate --help       held-out figures, and paired tests between two ways
"""
