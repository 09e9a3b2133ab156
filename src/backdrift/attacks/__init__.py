"""Published backdoor attacks, one paper per file, and the named triggers and targets."""
