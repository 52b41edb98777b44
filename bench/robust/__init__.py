"""What a server survives: a process to kill, connections broken in every way, sessions that must not notice."""
