"""What makes tables and pictures of the results."""
