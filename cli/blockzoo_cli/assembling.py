"""What verbs that run models ask about the chains that may serve them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

_CHOICES = ["exact", "at_most:A", "at_most:B", "at_most:C"]


def assembly_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """``--assembly`` and ``--any-text``."""
    for option in (
        click.option(
            "--any-text",
            is_flag=True,
            help="Let certificates count that name no text of the model's own domain.",
        ),
        click.option(
            "--assembly",
            type=click.Choice(_CHOICES),
            default="exact",
            show_default=True,
            help="The exact chain, or a certified one where that is cheaper now.",
        ),
    ):
        command = option(command)
    return command
