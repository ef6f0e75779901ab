"""Plain numbers and text -> a number as text, a colour, a figure, a page. Ground floor: knows no result, imports errors alone.

In reading order: `result` (as_dict, to_json, to_html of every result), `numbers` (as text), `style` (colours by meaning),
`page` (the frame of all pages, tables, the page of a run), `figures` (the charts on that page).
"""
