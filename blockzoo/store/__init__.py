"""Objects on disk: put, get, check, collect; and the names that refer to them."""
