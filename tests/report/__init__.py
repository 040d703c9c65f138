"""The report: what it shows, how it is drawn, and the page in a browser."""
