"""Which of a model's certified chains serves a request: what is cheapest now, told by a policy."""
