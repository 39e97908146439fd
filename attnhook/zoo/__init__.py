"""What each library's models mean. Knows nothing of hooks."""
