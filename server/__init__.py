"""What the platform's own API lacks: custom routes, the guard, the command line."""

__version__ = "0.1.0"
