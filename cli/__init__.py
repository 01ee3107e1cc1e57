"""The command line: it parses, calls and shows; the science is elsewhere."""
