"""Serves a trained controller over HTTP, on Ray Serve."""
