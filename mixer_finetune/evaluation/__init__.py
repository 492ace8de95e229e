"""What came out: predictions, measures, results, pictures and the report."""
