"""Trigger inversion, one method a file: model in, anonymous candidates out."""
