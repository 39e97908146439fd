"""Gone since 0.2; importing it, or anything that was in it, says where that is now."""

from attnhook._deprecated import WORKFLOWS

raise ImportError(WORKFLOWS)
