"""MUSE: a visual tokenizer whose latent reconstructs pixels and carries meaning (ICML 2026)."""
__version__ = "0.1.0"
