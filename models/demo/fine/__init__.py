"""The fine model: a second tiny VideoLLaMA3, on a world in which detail is small, local and short-lived.

The demo model's tokens each know the whole frame, so its answers survive any pruning, even at random. Here a token
knows its own place and what lies on it, things are one to one and a half tokens wide, and most questions are about one
place at one time: what a sign says at a second, how many shapes there are then, when one appears far from what moves.
So what is lost of the tokens, or of their precision, is lost to the answers.

    python -m vl3edge.models.demo.fine.train --out DIR       trains it from scratch, or goes on where a run stopped
    python -m vl3edge.models.demo.fine.evaluate --help       held-out figures, and paired tests between two ways
"""
