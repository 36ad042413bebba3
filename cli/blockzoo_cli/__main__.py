"""``python -m blockzoo_cli``: the same as ``blockzoo``."""

from blockzoo_cli.main import main

main()
