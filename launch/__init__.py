"""Programs; what they are made of is in the folders."""
