"""A page that shows which labels of a run are suspicious."""
