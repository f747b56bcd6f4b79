"""daemon.toml → typed, frozen rules; every error with its place.

``load.load`` reads the file, ``expand.targets`` says which checkpoints go where at this moment,
``schema.json_schema`` describes the file to editors.
"""
