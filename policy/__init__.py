"""The controller: the only trained weights."""
