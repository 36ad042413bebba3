"""Models put together by hand from others' layers, in mergekit's words."""
