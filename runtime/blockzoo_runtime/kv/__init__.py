"""The KV cache: pages of keys and values, found again by content."""
