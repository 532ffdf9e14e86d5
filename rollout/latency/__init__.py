"""The clock, the hooks that read it, and how fast a device is."""
