"""The command ``ecoflap`` and its subcommands."""
