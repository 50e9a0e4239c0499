"""UniMoER: one frozen decoder with routed LoRA experts for both stages of search."""

__version__ = "0.1.0.dev0"
