"""The status page's data: states, the last hour, and the present problems in words."""
