"""The configuration: YAML to checked values, with a place for every mistake; loading and reloading."""
