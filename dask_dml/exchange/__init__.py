"""What travels between machines: pure state machines, without clock, threads or sockets."""
