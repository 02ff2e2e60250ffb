"""What checks a claim of the library rather than measures it."""
