"""What runs on the device; nothing here may need more than the device's own JetPack."""
