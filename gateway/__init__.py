"""The gateway: release state out, over HTTP."""
