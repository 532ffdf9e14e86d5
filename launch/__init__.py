"""The programs; the folders hold their parts."""
