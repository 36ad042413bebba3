"""Tensors in memory, each once for all tenants."""
