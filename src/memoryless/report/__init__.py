"""How results are shown: tables for the terminal, pages for the browser."""
