"""What the server speaks: one module per protocol.

Each has a function that takes the catalogue and returns a Flask blueprint, which app.py registers. A new protocol is a
module here, a line in app.py, its paths in openapi.py and a section in docs/api.md.
"""
