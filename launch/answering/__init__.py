"""One loaded run that answers: policies over one frozen model, streaming, evaluation harness."""
