"""The database: its tables, how it is opened, its migrations. SQLite in WAL mode, or any SQLAlchemy URL."""
