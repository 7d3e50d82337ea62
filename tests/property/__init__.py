"""Properties that hold for whatever input; a package, since its files are named like the unit tests."""
