"""What an audit will cost."""
