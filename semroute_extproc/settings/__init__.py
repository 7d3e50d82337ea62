"""The shapes of the configuration, section by section: names, bounds and descriptions. Pure."""
