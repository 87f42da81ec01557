"""A page that shows suspicious labels."""
