"""The only room that opens the files of a checkpoint: never unpickles, never runs code from one.

``plan`` (torch-free) reads configs and headers, ``load`` builds the model, ``save`` and
``evidence`` write. Importing the package imports none of them.
"""
