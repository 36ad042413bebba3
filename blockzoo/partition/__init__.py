"""Checkpoints and adapters to chains of blocks: by tensor names and config, without torch."""

from blockzoo.partition.adapters import partition_adapter
from blockzoo.partition.chain import Partitioned, partition
from blockzoo.partition.checks import check_shapes
from blockzoo.partition.families import FAMILIES, family_of_config
from blockzoo.partition.family import Family, Sublayer
from blockzoo.partition.serving import why_not_served

__all__ = [
    "FAMILIES",
    "Family",
    "Partitioned",
    "Sublayer",
    "check_shapes",
    "family_of_config",
    "partition",
    "partition_adapter",
    "why_not_served",
]
