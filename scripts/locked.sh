#!/bin/sh
# Runs a command that no other `make` in this folder runs at the same time.
if command -v flock >/dev/null 2>&1; then
  exec 9<Makefile
  flock -n 9 || {
    echo "another make is building in this folder: waiting for it" >&2
    flock 9
  }
fi
exec "$@"
