"""Trains the small model that ships with the project, from nothing."""
