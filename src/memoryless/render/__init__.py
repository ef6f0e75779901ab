"""Plain numbers and text -> a figure, a page, a number as text. Ground floor: knows no result."""
