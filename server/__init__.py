"""What the platform's own API lacks: custom routes, the guard, the command line."""
