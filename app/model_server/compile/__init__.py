"""The compiler: turns Keras models into compiled models, which need no Keras and, most of them, no TensorFlow.

card.py reads the model's card, sources.py loads its files, convert.py converts them for an engine and proves that the
engine answers as the model does, measure.py finds the fastest engine, build.py puts the compiled model together,
__main__.py is the command.
"""


class CompileError(Exception):
    """A model cannot be compiled; the message names the model or file, the reason and the remedy."""
