"""Open-loop load on a server: edits that come when they come, however slow the answers. `fashion-rag bench` runs it.

`mix` draws what is sent and when, `drawn` the photos, `load` sends, `report` and `plot` say what came of it, `scrape`
reads the server's own metrics, `measure` puts these together, `run` does what the command is asked.
"""
