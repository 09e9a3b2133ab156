"""Reports of a scan: the same document as text, JSON, SARIF, Markdown and HTML."""
