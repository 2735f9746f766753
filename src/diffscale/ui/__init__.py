"""A page in the browser that starts searches, watches their run folders, and compares two of them."""

import os

# Before gradio is imported, which would otherwise ask for its newest version and report how it is used.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
