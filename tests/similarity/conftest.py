"""A zoo of planted truths, made once; and texts that its models read."""

from tests.planted import one_thread, planted, texts

__all__ = ["one_thread", "planted", "texts"]
