"""The model that lmms-eval finds here when LMMS_EVAL_PLUGINS names this package (docs/evaluation.md)."""

AVAILABLE_MODELS = {"vl3edge": "Vl3Edge"}
