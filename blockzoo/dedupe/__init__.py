"""Making the zoo smaller: plans that are shown first and then executed, and can be undone."""
