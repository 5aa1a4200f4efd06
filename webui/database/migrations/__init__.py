"""Alembic's environment. To change a table: edit `webui.database.tables`, add `versions/000N_what.py`."""
