"""PEFT adapters, applied exactly, one file a type.

An adapter changes a hop in three ways: an `Attachment` on a leaf (LoRA, DoRA, IA3), a tensor in
place of the base's (norm tuning, biases, ``modules_to_save``), or virtual tokens before the text
(prefix, prompt).
"""
