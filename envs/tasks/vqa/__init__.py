"""The nine VQA data sets that Molmo is evaluated on, and how their answers are scored."""
