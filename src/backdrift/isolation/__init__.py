"""A scan in a process of its own, with less power than the one that asked for it.

``parent`` asks for a scan, ``process`` starts it and reads what it sends, ``child`` runs in it, ``limits``
and ``seccomp`` take its powers away, ``wire`` is how the two talk: never by pickle. What it keeps: it can
read what its user can read, and its report is its own word.
"""
