"""A run as one page: what it achieved, how, and on what machine."""
