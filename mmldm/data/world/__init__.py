"""The built-in world: deterministic, captioned, compositional pictures, videos and sounds, computed instead of stored."""

from mmldm.data.world.attributes import KINDS, VOCABULARY, combinations, split_combinations
from mmldm.data.world.captions import TEMPLATES, caption
from mmldm.data.world.source import World

__all__ = ["KINDS", "TEMPLATES", "VOCABULARY", "World", "caption", "combinations", "split_combinations"]
