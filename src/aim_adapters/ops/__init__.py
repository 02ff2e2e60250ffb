"""What is fast: each op a folder with its oracle, its implementations and the rule that picks one."""
