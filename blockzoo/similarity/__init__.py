"""How alike tensors and blocks are. The measures on weights need NumPy only."""
