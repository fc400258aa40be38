"""How the layers of a stage are gone through: by one device, or by several that exchange rows."""
