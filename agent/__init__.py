"""What runs for a thread."""
