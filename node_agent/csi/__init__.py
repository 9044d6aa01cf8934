"""The CSI node plugin: inline ephemeral volumes that hold a pod's sockets, or its certificate in files."""
