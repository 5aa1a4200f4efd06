"""The queue: one facade (`service.Jobs`), one worker thread, progress for any number of watchers, all state in SQL."""
