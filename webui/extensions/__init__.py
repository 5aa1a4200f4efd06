"""What people add to Atelier: the hooks they may implement, the host that runs them, and how they are installed.

The names below are all that an extension imports. Nothing here knows the engine, the jobs or the page.
"""

from webui.extensions.hookspecs import ExtensionContext, ExtensionSetting, SettingValue, Tab, hookimpl

__all__ = ["ExtensionContext", "ExtensionSetting", "SettingValue", "Tab", "hookimpl"]
