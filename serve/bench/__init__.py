"""Measures a server: under load, for `fashion-rag bench`, and where the time of one edit goes, for `fashion-rag trace`.

Under load, edits come at their own times, however slow the answers:

`mix` draws edits and their times, `drawn` draws photos, `load` sends, `scrape` reads the server's own metrics, `report`
and `plot` show the figures, `measure` puts these together, and `run` does what the command is asked.

Of one edit, `spans` collects what the replicas say, `budget` adds up what its time went into, `waterfall` and `plot`
show it, and `traced` does what the command is asked.
"""
