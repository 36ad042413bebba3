"""The command line of blockzoo: one file a verb, thin over `blockzoo` and `blockzoo_runtime`."""
