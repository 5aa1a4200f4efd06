"""What the person at the page has chosen: a typed schema, and the one file that keeps it."""

from webui.settings.schema import Settings
from webui.settings.store import SettingsStore

__all__ = ["Settings", "SettingsStore"]
