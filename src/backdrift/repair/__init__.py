"""Countermeasures, one paper a file; each file here is a plug-in (:mod:`backdrift.core.registry`)."""
