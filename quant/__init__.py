"""GPTQ for VideoLLaMA3's decoder: calibrated on video, solved layer by layer, exchanged with other tools."""

from .comparison import Comparison, compare
from .decoder import quantize_decoder
from .errors import QuantError
from .gptq_reader import GptqLinears
from .gptq_writer import write_gptq_checkpoint
from .plan import QuantizationPlan
from .sequences import CalibrationSequence

__all__ = [
    "CalibrationSequence",
    "Comparison",
    "GptqLinears",
    "QuantError",
    "QuantizationPlan",
    "compare",
    "quantize_decoder",
    "write_gptq_checkpoint",
]
