"""How long the tests wait for something before they take it to hang."""

PATIENCE = 60.0  # seconds; what takes milliseconds may take many seconds on a busy machine
