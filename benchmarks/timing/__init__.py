"""What measures: one file per question, and what such files share."""
