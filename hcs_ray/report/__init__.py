"""The report: one HTML file that opens anywhere, made from what the stage records list.

`material` reads, one module a section turns tables into what the template shows (pure functions), `figures`
and `pictures` draw, `build` is the stage.
"""
