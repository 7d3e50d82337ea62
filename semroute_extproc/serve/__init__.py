"""The running sidecar: composition, reload, and several workers as one service; scoring without a server."""
