"""Gone since 0.2; importing it says where what was in it is now."""

from attnhook._deprecated import ADAPTERS

raise ImportError(ADAPTERS)
