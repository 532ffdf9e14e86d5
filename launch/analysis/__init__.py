"""What a profile or a run says: rivals, intervals, tables and plots."""
