"""The plugins that come with candled, installed as `candled_plugins` and found like any other."""
