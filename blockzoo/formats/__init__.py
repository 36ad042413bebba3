"""Checkpoints in: safetensors, torch pickles and PEFT adapters, as tensors over mapped files.

Nothing here imports torch or runs anything that a checkpoint contains. Use
:func:`blockzoo.formats.checkpoint.open_checkpoint` for a folder or a lone file,
:func:`blockzoo.formats.weights.open_weights` for one file of weights, and
:func:`blockzoo.formats.hub.fetch` for a Hub id.
"""
