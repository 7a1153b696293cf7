"""Open-loop load on a server: edits come at their own times, however slow the answers. `fashion-rag bench` runs it.

`mix` draws edits and their times, `drawn` draws photos, `load` sends, `scrape` reads the server's own metrics, `report`
and `plot` show the figures, `measure` puts these together, and `run` does what the command is asked.
"""
