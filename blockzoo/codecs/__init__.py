"""How an object's bytes are kept in a file: one module a kind, each with the same functions.

A kind is known by its file's suffix. ``raw`` (``.safetensors``) keeps a tensor as it is;
``zstd`` (``.zst``) keeps a small file compressed and sealed. An object's digest does not depend
on its kind.
"""
