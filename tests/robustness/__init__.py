"""Attacks: threads, signals, forks, want of memory, hostile files, random calls."""
