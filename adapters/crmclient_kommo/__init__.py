"""The dialect is being written."""
