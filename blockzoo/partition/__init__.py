"""Checkpoints to chains of blocks: by tensor names and config, without torch."""

from blockzoo.partition.chain import Partitioned, partition
from blockzoo.partition.families import FAMILIES, family_of_config
from blockzoo.partition.family import Family, Sublayer

__all__ = ["FAMILIES", "Family", "Partitioned", "Sublayer", "family_of_config", "partition"]
