"""One step after another: requests, batches, sampling, text."""
