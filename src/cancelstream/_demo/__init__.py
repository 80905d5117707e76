"""The demos of the command: a stop in the terminal, a page with a Stop button, the usage of stored messages."""
