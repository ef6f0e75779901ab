"""An optimizer alone: momentum variables and a readout phi, or any torch optimizer run as it is."""
