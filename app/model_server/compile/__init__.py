"""The compiler: Keras models in, a bundle that needs neither Keras nor (mostly) TensorFlow out.

sources.py loads a model of any format, convert.py turns it into an engine's file and proves that the file
answers as the model does, build.py puts a model's folder of the bundle together, __main__.py is the command.
"""


class CompileError(Exception):
    """A model cannot be compiled; the message names the model or file, the reason and the remedy."""
