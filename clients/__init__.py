"""The JavaScript clients as data of the distribution, so that the daemon serves the very files of `js/`."""
