"""The plugins bundled with candled, installed as `candled_plugins` and discovered like any other."""
