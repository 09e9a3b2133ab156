"""Reports of a scan: the same document as text, JSON and HTML."""
