"""The subcommands of `raystream`, a file each. `add(commands, options)` declares one, its `run` carries it out."""
