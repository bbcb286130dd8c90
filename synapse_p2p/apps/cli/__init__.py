"""The commands: what a user can do in Python, from a shell.

`app.py` says which there are, the files named after what they do run them and return what they found as a map of plain
values, and `views.py` makes of such a map what people read. `--json` prints the map itself.
"""
