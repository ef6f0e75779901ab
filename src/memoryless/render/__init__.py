"""Plain numbers and text -> a number as text, a colour, a figure, a page. It knows no result.

It may import the ground floor (the files beside the rooms) alone. In reading order:

* `result`: `as_dict`, `to_json`, `to_html` of every result.
* `numbers`: numbers as text.
* `style`: colours and marks by meaning.
* `page`: the frame of all pages, tables of plain data, the page of a run.
* `figures`: the charts on that page.
* `comparison`: the page of several optimizers on one loss.
"""
