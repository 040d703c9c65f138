"""What an audit will cost: calls, time, and the age or error of results, by strategy."""
