"""The command line: a parser, the flags in groups, combinations that are refused."""
