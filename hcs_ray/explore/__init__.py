"""`hcs-ray explore`: a study in the browser, and the data that its views are made of.

`scene` joins the tables of a run, `columns` says what a field can be coloured by, `thumbnails` and `fields`
give pictures, `summaries` the numbers of linked views; none of these knows of the web.
"""
