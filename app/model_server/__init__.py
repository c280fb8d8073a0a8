"""Slipway's model server: compiles Keras models into a bundle and serves the bundle over HTTP."""
