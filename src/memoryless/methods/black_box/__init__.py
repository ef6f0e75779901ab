"""Any torch optimizer as a method: its own step(), run as a pure function of state, gradient and theta."""
