"""A plugin for lmms-eval: its benchmarks, its prompts and its measures, answered by a vl3edge bundle."""
