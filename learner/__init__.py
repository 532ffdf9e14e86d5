"""Advantages, losses and the one update."""
