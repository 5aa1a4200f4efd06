"""The database: its tables, how it is opened, its migrations. SQLite in WAL mode by default, any SQLAlchemy URL else."""
