"""Vocabulary, environment, reward and tasks; imports nothing of the other packages."""
