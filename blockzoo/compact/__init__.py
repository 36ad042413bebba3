"""Models as what they differ by from their base: found, certified, served in its batch."""
