"""The built-in recipes, as TOML files to read and copy."""
