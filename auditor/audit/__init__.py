"""One audit, from settings to a sealed run folder: preflight, setup or resume, the session, and its end."""
