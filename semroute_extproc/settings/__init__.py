"""The configuration's sections: names, bounds and descriptions. Pure."""
