"""Measures an exported graph against the torch modules, on realistic inputs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime


@dataclass(frozen=True)
class Difference:
    """Absolute differences of an engine's output from the torch module's; max_abs is the latter's largest value."""

    max_abs_diff: float
    mean_abs_diff: float
    max_abs: float

    @classmethod
    def between(cls, engine: np.ndarray, reference: np.ndarray) -> Difference:
        difference = np.abs(engine.astype(np.float64) - reference)
        return cls(float(difference.max()), float(difference.mean()), float(np.abs(reference).max()))


def load_session(path: Path, prepack: bool = False) -> onnxruntime.InferenceSession:
    """A CPU session; without prepacking it reads weights from the mapped file: slower, and half the memory.

    Prepacking changes no float32 result, but only with it do quantized products round their activations.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.disable_prepacking", "0" if prepack else "1")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def input_dtype(session: onnxruntime.InferenceSession, name: str) -> type:
    """The dtype of one of a graph's inputs: numpy's float32 or float16."""
    types = {value.name: value.type for value in session.get_inputs()}
    return np.float16 if types[name] == "tensor(float16)" else np.float32
