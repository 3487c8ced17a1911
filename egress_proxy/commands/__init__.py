"""The verbs of the command line: each module has those of one subject, and what they print."""
