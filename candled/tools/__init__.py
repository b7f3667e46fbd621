"""Commands on stored history: `commands` declares them for the command line, the other modules do the work."""
