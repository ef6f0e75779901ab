"""Problems that come with the package, the paper's figures, the theorem put to the test."""
