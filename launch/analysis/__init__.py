"""What a profile or a run shows: rivals, intervals, tables and plots."""
